"""What a run is refused for before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest
from small import make_store

from pants_dist import config, launch
from pants_dist.errors import UserError
from pants_dist.tracking import ATTEMPT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("launch") / "store", cases=6)


def settings(store: Path, runs: Path, steps: int, *more: str) -> config.Settings:
    small = ["--data.patch_zyx", "[16, 32, 32]", "--model.channels", "[4, 8, 16]", "--tracking.wandb", "off"]
    return config.load(
        "debug", ["--data.store", str(store), "--runs", str(runs), "--train.steps", str(steps), *small, *more]
    )


def test_a_center_that_does_not_exist_is_refused(store: Path, tmp_path: Path) -> None:
    """A held-out center that the store does not have is named before anything starts, with those that it has."""
    with pytest.raises(UserError, match="no center 'Nowhere'.*Center A, Center B, Center C"):
        launch.launch(settings(store, tmp_path, 1, "--data.held_out_centers", '["Nowhere"]'), "x")


def test_holding_out_every_center_leaves_nothing(store: Path, tmp_path: Path) -> None:
    """No cases left after a split is one line."""
    with pytest.raises(UserError, match="no cases to train on"):
        launch.launch(
            settings(store, tmp_path, 1, "--data.held_out_centers", '["Center A", "Center B", "Center C"]'), "x"
        )


def test_validation_without_cases_is_refused(store: Path, tmp_path: Path) -> None:
    """Validating during training needs a case that was kept for it: said before anything starts."""
    with pytest.raises(UserError, match="no case is kept for validation"):
        launch.launch(settings(store, tmp_path, 1, "--validation.every", "1", "--data.val_fraction", "0"), "x")


def test_a_best_that_nothing_decides_is_refused(store: Path, tmp_path: Path) -> None:
    """A structure that no scored case of a seen center has would leave the run without a best checkpoint."""
    wanted = "--validation.every", "1", "--validation.best", "dsc/spleen", "--model.structures", "[liver, spleen]"
    with pytest.raises(UserError, match=r"best is dsc/spleen, but none of the 3 cases of seen centers .*, or use dsc"):
        launch.launch(settings(store, tmp_path, 1, *wanted), "x")


def test_in_a_job_the_ranks_look_at_memory(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that is too large is refused in the same words, and who starts the ranks has imported no network for it."""
    monkeypatch.setenv(ATTEMPT, "7.0")
    wide = "--data.patch_zyx=[64, 1024, 1024]", "--train.ranks=1", "--loader.kind=local"
    large = settings(store, tmp_path, 1, "--train.batch=64", "--train.micro_batch=64", *wide)
    (tmp_path / "config.yaml").write_text(config.dump(large))
    code = (
        "import sys\nfrom pants_dist import config, errors, launch\n"
        "try: launch.launch(config.load(sys.argv[1], []), 'x')\n"
        "except errors.UserError as error: print(error)\n"
        "print('monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "config.yaml"], capture_output=True, text=True)
    said, imported = done.stdout.splitlines()[-2:]
    assert said.startswith("memory: a step needs at least ") and " would fit" in said and imported == "False", done.stderr
