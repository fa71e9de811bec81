from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pants_dist import config
from pants_dist.config import Data, Optim, Settings, Train
from pants_dist.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def written(tmp_path: Path):
    """A function that writes YAML to a file of its own."""

    def write(text: str) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_overrides_win_over_the_file_and_the_file_over_defaults(written) -> None:
    """YAML first, then dotted overrides in either spelling, a later one over an earlier; the rest are defaults."""
    path = written("data: {store: a}\noptim: {lr: 1e-3}\ntrain:\n  steps: 7\n  batch: 8\n")
    settings = config.load(path, ["--train.steps", "8", "--data.patch_zyx=[16, 32, 64]", "--train.steps=9"])
    expected = Settings(
        data=Data(store="a", patch_zyx=(16, 32, 64)), optim=Optim(lr=1e-3), train=Train(steps=9, batch=8)
    )
    assert settings == expected


def test_a_file_may_begin_with_the_settings_of_another(written, tmp_path: Path) -> None:
    """`base` is a file beside it or a shipped one; its settings are replaced one by one. A ring of bases is refused."""
    (tmp_path / "below.yaml").write_text("base: debug.yaml\ndata: {store: a, val_fraction: 0.3}\n")
    settings = config.load(written("base: below.yaml\ndata:\n  store: b\n"), [])
    debug = config.load("debug", [])
    assert (settings.data.store, settings.data.val_fraction) == ("b", 0.3)
    assert settings.train == debug.train and settings.model == debug.model
    (tmp_path / "below.yaml").write_text("base: x.yaml\n")
    with pytest.raises(UserError, match=r"x.yaml: is its own base"):
        config.load(tmp_path / "x.yaml", [])
    with pytest.raises(UserError, match="config nowhere.yaml: no such file"):
        config.load(written("base: nowhere.yaml\n"), [])


def test_words_of_yaml_mean_what_they_say(written) -> None:
    """`off` is a word and no boolean, `null` is nothing, in the file and on the command line alike."""
    path = written("data: {store: a}\ntracking: {wandb: off}\nvalidation: {every: 5}\n")
    assert config.load(path, []).tracking.wandb == "off"
    changed = config.load(path, ["--tracking.wandb", "online", "--validation.every", "null"])
    assert (changed.tracking.wandb, changed.validation.every) == ("online", None)
    assert config.load(path, ["--tracking.wandb", "off"]) == config.load(path, [])


REFUSED = {
    "data: {stor: a}": r"x\.yaml, line 1: no setting 'data\.stor'; did you mean 'data\.store'",
    "dta:\n  store: a": r"line 1: no setting 'dta'; did you mean 'data'",
    "data: {store: a}\nlr: 3": r"line 2: no setting 'lr'; did you mean 'optim\.lr'",
    "data: {store: a}\noptim: {zzz: 3}": r"no setting 'optim\.zzz'; there are optim\.name, optim\.lr, ",
    "data: {store: a}\ntrain:\n  steps: many": r"line 3: train\.steps is 'many'; it takes a whole number",
    "data: {store: a}\nseed: null": r"seed is None; it takes a whole number",
    "data: {store: a}\nseed: true": r"seed is True; it takes a whole number",
    "data: {store: 5}": r"data\.store is 5; it takes text",
    "data: {store: a, patch_zyx: [1, 2]}": r"patch_zyx is \[1, 2\]; it takes 3 whole numbers, like \[32, 64, 64\]",
    "data: {store: a, held_out_centers: A}": r"held_out_centers is 'A'; it takes a list of names",
    "data: {store: a}\ntracking: {wandb: maybe}": r"wandb is 'maybe'; it takes one of off, offline, online",
    "data: {store: a}\ndata: {store: b}": r"line 2: data stands there twice",
    "data: 3": r"data must hold settings",
    "- a": r"the file must hold settings",
    "data: [": r"x\.yaml: is not YAML",
    "seed: !!python/object:os.system x": r"is not YAML",
    "seed: 3": r"data\.store is not set; add --data\.store",
    "": r"data\.store is not set",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_with_a_mistake_is_refused_by_name(text: str, written) -> None:
    """A wrong name, type or form is one line with file, line, setting, value and what would be right."""
    with pytest.raises(UserError, match=REFUSED[text]) as refused:
        config.load(written(text), [])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--optm.lr", "3"], r"option --optm\.lr: no setting 'optm\.lr'; did you mean 'optim\.lr'"),
        (["--train.steps", "1.5"], r"option --train\.steps: train\.steps is '1\.5'; it takes a whole number"),
        (["--train.steps"], r"option --train\.steps: the value is missing; it takes a whole number"),
        (["--train.steps", "--seed"], r"option --train\.steps: the value is missing"),
        (["steps=3"], r"steps=3: not expected here"),
        (["--optim", "{}"], r"no setting 'optim'"),
    ],
)
def test_an_override_with_a_mistake_is_refused_by_name(overrides: list[str], says: str, written) -> None:
    """Overrides are held to the same names and types as the file."""
    with pytest.raises(UserError, match=says):
        config.load(written("data: {store: a}"), overrides)


def test_a_config_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """The shipped files are named, and found by file name or stem wherever one stands."""
    with pytest.raises(UserError, match=r"config debugg: no such file.*baseline\.yaml, debug\.yaml"):
        config.load("debugg", [])
    with pytest.raises(UserError, match="no such file"):
        config.load(tmp_path / "debug.yaml", [])
    assert config.shipped("debug") == config.shipped("debug.yaml") == CONFIGS / "debug.yaml"
    assert config.shipped("debugg") is None


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_fits_together(path: Path, written) -> None:
    """Each loads, passes the checks, and says what it is for in a comment at its top."""
    settings = config.load(path, [])
    config.check(settings)
    assert path.read_text().startswith("# ")
    assert config.load(written(config.dump(settings)), []) == settings


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff\ufffe\uffff"), min_size=1
)


@hypothesis_settings(deadline=None)
@given(store=words, centers=st.lists(words), lr=st.floats(1e-12, 1e6), cases=st.none() | st.integers(1, 99))
def test_dumped_settings_load_back_equal(
    tmp_path_factory, store: str, centers: list[str], lr: float, cases: int | None
) -> None:
    """Whatever the names and numbers, YAML in between changes nothing."""
    settings = Settings(data=Data(store=store, held_out_centers=tuple(centers)), optim=Optim(lr=lr))
    settings = replace(settings, validation=replace(settings.validation, cases=cases))
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(config.dump(settings), encoding="utf-8")
    assert config.load(path, []) == settings


def test_a_difference_names_the_setting_and_both_values() -> None:
    """What a run that exists is compared by."""
    before = Settings(data=Data(store="a"))
    after = replace(before, train=Train(steps=5), seed=1)
    assert config.difference(before, after) == [("seed", 0, 1), ("train.steps", 1000, 5)]
    assert config.difference(before, before) == []


MISFITS = [
    (["--train.batch", "5", "--train.ranks", "2"], r"train\.batch is 5, which 2 ranks .*; use 4 or 6"),
    (["--train.batch", "2", "--train.ranks", "8"], r"train\.batch is 2, which 8 ranks .*; use 8"),
    (["--data.patch_zyx", "[30, 64, 60]"], r"patch_zyx is \[30, 64, 60\].*8, 8, 8: use 24 or 32, 64, 56 or 64 along z, y, x"),
    (["--data.patch_zyx", "[8, 8, 8]"], r"leaves one voxel at the last level of unet; use \[8, 8, 16\] or more"),
    (["--data.patch_zyx", "[0, 64, 64]"], r"patch_zyx is \[0, 64, 64\]; it must be 1 or more"),
    (["--model.channels", "[16]"], "two levels or more"),
    (["--model.channels", "[]"], "two levels or more"),
    (["--model.channels", "[16, 0]"], r"channels is \[16, 0\]; it must be 1 or more"),
    (["--model.blocks", "[]"], r"model\.blocks is \[\]; give 1 to 4 numbers"),
    (["--model.blocks", "[1, 2]"], r"unet has as many at every level; use \[1\]"),
    (["--model.name", "swin_unetr"], r"channels is \[16, 32, 64, 128\].*use \[12, 24, 48, 96\]"),
    (["--model.name", "mednext", "--model.channels", "[8, 16, 16]"], r"mednext doubles.*use \[8, 16, 32\]"),
    (["--model.name", "segresnet_ds"], r"blocks is \[0\].*use \[1, 2, 2, 4\], as published"),
    (["--model.expansion", "[3]"], r"expansion is \[3\], which is mednext's alone"),
    (["--model.name", "dynunet", "--data.patch_zyx", "[9, 9, 9]"], r"bears 2 of the 4 levels.* use .*\[16, 32\] or a larger"),
    (["--model.name", "dynunet", "--data.patch_zyx", "[7, 7, 7]"], r"too small for two levels of dynunet; use \[12, 12, 12\]"),
    (["--optim.momentum", "1"], r"momentum is 1\.0; it must be 0 or more and below 1"),
    (["--optim.ema", "1"], r"ema is 1\.0; it must be 0 or more and below 1"),
    (["--model.structures", "[]"], "name one structure or more"),
    (["--model.structures", "[liver, liver]"], "liver is named 2 times; name it once"),
    (["--train.steps", "0"], "train.steps is 0; it must be 1 or more"),
    (["--validation.every", "0"], "validation.every is 0; it must be 1 or more"),
    (["--optim.lr", "-1"], r"optim\.lr is -1\.0; it must be above 0"),
    (["--optim.lr", ".inf"], r"optim\.lr is inf; it must be above 0"),
    (["--data.val_fraction", "1"], r"val_fraction is 1\.0; it must be 0 or more and below 1"),
    (["--data.foreground_fraction", "1.1"], r"foreground_fraction is 1\.1; it must be between 0 and 1"),
    (["--seed", "-1"], "seed is -1; it must be 0 or more"),
    (["--augment.scale", "[1.4, 0.7]"], r"augment.scale is \[1\.4, 0\.7\]; the smaller one comes first"),
    (["--augment.mirror", "zw"], "augment.mirror is 'zw'; use some of the letters"),
    (["--augment.rotation_degrees", "120"], "it must be between 0 and 90"),
    (["--data.spacing_mm_zyx", "[1, 0, 1]"], r"spacing_mm_zyx is \[1\.0, 0\.0, 1\.0\]; it must be above 0"),
]


@pytest.mark.parametrize(
    ("overrides", "says"), MISFITS, ids=lambda part: " ".join(part) if isinstance(part, list) else ""
)
def test_settings_that_do_not_fit_together_are_refused(overrides: list[str], says: str) -> None:
    """Before anything starts, with the values that would fit."""
    with pytest.raises(UserError, match=says):
        config.check(config.load("debug", overrides))


def test_every_setting_says_what_it_means() -> None:
    """The catalog, and so the help, has a meaning and a type in words for each."""
    for setting in config.catalog().values():
        assert setting.meaning and config.expected(setting.hint), setting.name
