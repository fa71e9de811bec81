import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from manifests import cases_of, frame_of
from small import make_store, plan_of

from pants_dist import cli, config
from pants_dist.errors import UserError
from pants_dist.evaluate import facts_of
from pants_dist.freeze import freeze, lines, write_split
from pants_dist.parser import settings_of
from pants_dist.settings import Data
from pants_dist.splits import NOT_FROZEN, POOL, digest_of, read_split, split_of
from pants_dist.store import open_store


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """A: 12 cases, 5 of them with a lesion, and a patient's two; B: 12 cases, 4 with a lesion; a pool; four test cases of B."""
    return frame_of(
        cases_of("1 Site", "A", 12, 1, lesions=5), cases_of("1 Site", "A", 2, 21, patient="x"),
        cases_of("1 Site", "B", 12, 41, lesions=4), cases_of("1 Site", "B", 4, 9001, lesions=4),
        cases_of("3 Sites", "C; D", 3, 61),
    )  # fmt: skip


def frozen(frame: pd.DataFrame, path: Path, **settings: Any) -> dict[str, Any]:
    """What is written to `path`."""
    content = freeze(frame, Data(store="", **settings), "d" * 64)
    write_split(path, content)
    return content


def thawed(frame: pd.DataFrame, path: Path, **settings: Any) -> Any:
    return split_of(frame, Data(store="", split_file=str(path), **settings))


@pytest.mark.parametrize(
    "settings", [{}, {"held_out_centers": ("A",)}, {"leave_one_center_out": 1, "subset": 5, "pools": "keep"}]
)
def test_a_frozen_split_is_read_back_as_it_was_drawn(frame: pd.DataFrame, tmp_path: Path, settings: dict) -> None:
    """Every case, every reason, the hospitals held out; the runs cite the digest."""
    content = frozen(frame, tmp_path / "splits" / "v1.json", **settings)
    drawn, read = split_of(frame, Data(store="", **settings)), thawed(frame, tmp_path / "splits" / "v1.json")
    pd.testing.assert_series_equal(read.by_case, drawn.by_case)
    pd.testing.assert_series_equal(read.reasons, drawn.reasons)
    assert (read.held_out, read.absent) == (drawn.held_out, ())
    assert read.in_words() == f"{drawn.in_words()}, frozen as {content['digest']}"


def test_the_file_holds_what_decided(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Ids, folds, aliases, clusters, store and settings, under the sha256 of the rest as canonical JSON."""
    frozen(frame, tmp_path / "s.json", held_out_centers=("B",))
    content = json.loads((tmp_path / "s.json").read_text())
    digest = content.pop("digest")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert content["clusters"] == [["PanTS_00000021", "PanTS_00000022"]]
    assert content["folds"] == ["A", "B"] and content["held_out"] == ["B"]
    assert content["store"] == {"digest": "d" * 64, "cases": 33}
    assert content["aliases"]["m.d. anderson"] == "University of Texas MD Anderson Cancer Center"
    assert content["splits"]["test"] == [f"PanTS_0000900{n}" for n in range(1, 5)]
    assert content["left_out"] == {POOL: [f"PanTS_0000006{n}" for n in range(1, 4)]}
    assert content["settings"]["held_out_centers"] == ["B"] and content["settings"]["val_fraction"] == 0.2


def test_a_center_is_evaluable_with_five_scans_of_each_kind(frame: pd.DataFrame) -> None:
    """A has 5 with and 9 without; B has 8 with, but four of them in the official test; a pool never is."""
    content = freeze(frame, Data(store="", held_out_centers=("B",)), "")
    rows = {row["center"]: row for row in content["centers"]}
    assert {name: row["evaluable"] for name, row in rows.items()} == {"A": True, "B": False, "3 Sites (C ...)": False}
    assert [rows["B"][key] for key in ("cases", "with_lesion", "without_lesion", "held_out", "test", "train")] == [
        16,
        8,
        8,
        12,
        4,
        0,
    ]
    text = list(lines(content))
    assert next(line.split() for line in text if " B " in line) == "1 B single 16 8 8 0 0 12 4 0 no".split()
    assert next(line.split() for line in text if " A " in line) == "0 A single 14 5 9 11 3 0 0 0 yes".split()
    assert "evaluable  1 of 2 hospitals" in "\n".join(text) and "left out   pool of centers: 3" in text


def moved(content: dict) -> None:
    content["splits"]["train"].append(content["splits"]["held_out"].pop())


def renamed(content: dict) -> None:
    content["aliases"]["m.d. anderson"] = "Elsewhere"


@pytest.mark.parametrize("change", [moved, renamed])
def test_a_changed_file_is_refused(frame: pd.DataFrame, tmp_path: Path, change: Callable[[dict], None]) -> None:
    """One id in another split, or one other alias: the digest differs."""
    content = frozen(frame, tmp_path / "s.json", held_out_centers=("B",))
    change(content)
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"s\.json: was changed after it was frozen .*restore it"):
        thawed(frame, tmp_path / "s.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"digest": 1', "\x00"])
def test_what_is_no_split_is_refused(frame: pd.DataFrame, tmp_path: Path, text: str) -> None:
    """One line that says how to make one; so does a file that is not there."""
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match='is no frozen split; make one with "pants-dist split'):
        read_split(tmp_path / "s.json")
    with pytest.raises(UserError, match='no such file; make one with "pants-dist split'):
        thawed(frame, tmp_path / "nowhere.json")


def test_a_json_file_under_its_own_digest_is_no_split_either(tmp_path: Path) -> None:
    """Other programs' files may have a digest too."""
    (tmp_path / "s.json").write_text(json.dumps({"digest": digest_of({"a": 1}), "a": 1}))
    with pytest.raises(UserError, match="is no frozen split"):
        read_split(tmp_path / "s.json")


def test_on_another_store_absent_cases_are_counted(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Refused with their number, or gone without when told; cases that the file does not know are left out."""
    frozen(frame, tmp_path / "s.json", held_out_centers=("B",))
    other = pd.concat([frame.drop(["PanTS_00000001", "PanTS_00000041"]), frame_of(cases_of("1 Site", "A", 3, 500))])
    with pytest.raises(UserError, match=r"2 of its 30 cases are not in the store, such as PanTS_00000001; set data.absent"):
        thawed(other, tmp_path / "s.json")
    splits = thawed(other, tmp_path / "s.json", absent="drop")
    assert splits.absent == ("PanTS_00000001", "PanTS_00000041")
    assert splits.left_out() == {POOL: 3, NOT_FROZEN: 3} and splits.counts()["held_out"] == 11
    assert "absent from the store 2" in splits.in_words()


def test_settings_that_are_not_the_frozen_ones_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    """The same setting or its default passes; another is named with what was frozen."""
    frozen(frame, tmp_path / "s.json", held_out_centers=("B",), val_fraction=0.3)
    assert thawed(frame, tmp_path / "s.json", held_out_centers=("B",), val_fraction=0.3).held_out == ("B",)
    with pytest.raises(UserError, match=r"data.held_out_centers is \['A'\], but .* was frozen with \['B'\]; leave it"):
        thawed(frame, tmp_path / "s.json", held_out_centers=("A",))
    with pytest.raises(UserError, match=r"data.subset is 3, but .* was frozen with None"):
        thawed(frame, tmp_path / "s.json", subset=3)


def test_a_file_that_trains_on_the_official_test_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Even under a digest of its own."""
    content = frozen(frame, tmp_path / "s.json")
    content["splits"]["train"] += content["splits"]["test"][:2]
    content["splits"]["test"] = content["splits"]["test"][2:]
    (tmp_path / "s.json").write_text(json.dumps(content | {"digest": digest_of(content)}))
    with pytest.raises(UserError, match="trains on 2 official test cases, such as PanTS_00009001"):
        thawed(frame, tmp_path / "s.json")


def test_a_frozen_file_is_never_overwritten(frame: pd.DataFrame, tmp_path: Path) -> None:
    """The same split again is fine, another is refused and the file stays as it is."""
    path = tmp_path / "s.json"
    frozen(frame, path, held_out_centers=("B",))
    before = path.read_bytes()
    frozen(frame, path, held_out_centers=("B",))
    with pytest.raises(UserError, match="holds another split, and frozen ones do not change"):
        frozen(frame, path, held_out_centers=("A",))
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"data.split_file is .*frozen already"):
        freeze(frame, Data(store="", split_file=str(path)), "")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("freeze") / "store", cases=12)


def test_the_verb_freezes_and_a_run_trains_on_it(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`split` prints the table and the next command; that command's plan and report are those of the drawn split."""
    path = tmp_path / "ood-v1.json"
    assert cli.main(["split", str(store), "--out", str(path), "--data.held_out_centers", "[Center C]"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "held out   Center C" in said and "cases      train 6, val_seen 2, held_out 4" in said
    assert said[-1] == f"Next: pants-dist train --config debug.yaml --data.store {store} --data.split_file {path}"
    given = cli.build_parser()[0].parse_args(said[-1].split()[2:])
    settings, drawn = (
        settings_of(given),
        config.load("debug", [f"--data.store={store}", "--data.held_out_centers=[Center C]"]),
    )
    plans = [plan_of(open_store(store), chosen) for chosen in (settings, drawn)]
    assert plans[0].cases == plans[1].cases and len(plans[0].cases) == 6
    digest = read_split(path)["digest"]
    assert facts_of(settings)["Frozen split"] == f"ood-v1.json, digest {digest[:12]}"
    assert said[-2] == f"digest     {digest}" and read_split(path)["store"]["digest"] == open_store(store).digest


BAD = [
    (["--data.held_out_fraction", "0.5", "--data.leave_one_center_out", "1"], "both say which centers are held out"),
    (["--data.held_out_fraction", "1"], "data.held_out_fraction is 1.0; it must be above 0 and below 1"),
    (["--data.leave_one_center_out", "-1"], "data.leave_one_center_out is -1; it must be 0 or more"),
    (["--data.leave_one_center_out", "3"], "the store has 3 hospitals: 0 to 2 would fit"),
    (["--data.subset", "0"], "data.subset is 0; it must be 1 or more"),
    (["--data.pools", "some"], "data.pools is 'some'; it takes one of exclude, keep"),
    (["--optim.lr", "1"], "split: no option --optim.lr"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_a_split_that_does_not_fit_is_one_line(
    store: Path, tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture
) -> None:
    """Exit code 2, one line, and no file."""
    assert cli.main(["split", str(store), "--out", str(tmp_path / "s.json"), *words]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and says in told[0]
    assert not list(tmp_path.iterdir())
