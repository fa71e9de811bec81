import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small import make_store

from pants_dist import config, launch
from pants_dist.errors import UserError
from pants_dist.evaluate import Rows, evaluate, load_model, open_run, predict, validation_cases
from pants_dist.splits import splits_of
from pants_dist.store import open_store

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on a small store, one center of three held out."""
    folder = tmp_path_factory.mktemp("evaluate")
    store = make_store(folder / "store", cases=6, edge=40)
    small = ["--data.patch_zyx", "[32, 32, 32]", "--model.channels", "[8, 16, 32]", "--train.steps", "40", "--train.ranks", "1"]
    more = ["--data.held_out_centers", '["Center C"]', "--tracking.wandb", "off", "--loader.kind", "local"]
    settings = config.load("debug", ["--data.store", str(store), "--runs", str(folder / "runs"), *small, *more])
    assert launch.launch(settings, "r") == 0
    evaluate(folder / "runs" / "r")
    return folder / "runs" / "r"


def test_every_validation_case_is_scored_once(run: Path) -> None:
    """One row a case of each split, with what the tables need, and the report beside them."""
    table = pd.concat([pd.read_parquet(run / "evaluation" / split / "cases.parquet") for split in ("val_seen", "held_out")])
    assert sorted(table["case"])[-1] == "PanTS_00000006" and len(table) == 4
    assert table["case"].is_unique and set(table["split"]) == {"val_seen", "held_out"}
    assert (table["seen"] == (table["split"] == "val_seen")).all() and table["dsc/liver"].between(0, 1).all()
    absent = table[~table["lesion_present"].astype(bool)]
    assert len(absent) and absent["dsc/pancreatic_lesion"].isna().all()
    for name in ("report.html", "held_out/report.html", "held_out/centers.parquet"):
        assert (run / "evaluation" / name).is_file()
    assert list((run / "evaluation" / "held_out" / "worst").glob("*.png"))


def test_dice_is_that_of_the_masks(run: Path) -> None:
    """A row's Dice of the liver equals the one computed here from the model's logits and the stored masks."""
    settings, checkpoint = open_run(run)
    store = open_store(settings.data.store)
    row = pd.read_parquet(run / "evaluation" / "held_out" / "cases.parquet").iloc[0]
    image, codes = store.read_patch(row["case"], (0, 0, 0), store.shape_zyx(row["case"]))
    with torch.no_grad():
        model, _ = load_model(checkpoint, settings, store)
        predicted = (predict(model, image, settings, store.spacing_mm_zyx(row["case"]))[0] > 0).numpy()
    liver = codes == 1
    assert row["dsc/liver"] == pytest.approx(2 * (predicted & liver).sum() / (predicted.sum() + liver.sum()))


def test_a_killed_evaluation_goes_on(run: Path) -> None:
    """Rows on disk are kept, a torn last one is scored again, and the table is the same."""
    folder = run / "evaluation" / "held_out"
    before, log = pd.read_parquet(folder / "cases.parquet"), folder / "rows.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:2]) + '\n{"case": "PanTS_0000')
    scored: list[str] = []
    evaluate(run, ("held_out",), on_case=lambda done, total, row: scored.append(row["case"]))
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "cases.parquet"), before)
    assert len(log.read_text().splitlines()) == len(lines) and len(scored) == len(before)


def test_rows_of_another_checkpoint_are_not_taken(tmp_path: Path) -> None:
    """Rows belong to the checkpoint that they were scored with."""
    Rows(tmp_path, "one").add({"case": "a", "dsc/liver": 0.5})
    assert set(Rows(tmp_path, "one").known) == {"a"} and not Rows(tmp_path, "two").known
    assert json.loads((tmp_path / "rows.jsonl").read_text())["checkpoint"] == "two"


def test_the_validation_sample_is_fixed_and_spread_over_centers(run: Path) -> None:
    """The cases scored during training are the same each time, and take each center in turn."""
    settings, _ = open_run(run)
    store = open_store(settings.data.store)
    splits = splits_of(store, settings.data)
    cases = validation_cases(store, settings, splits)
    assert cases == validation_cases(store, settings, splits)
    assert {store.value(case, "center") for case in cases} == {"Center A", "Center B", "Center C"}


@pytest.mark.parametrize(
    "split, message",
    [("tset", "unknown; the splits are train, val_seen"), ("test", "has no case in it; it has cases in train")],
)
def test_a_split_without_cases_is_refused(run: Path, split: str, message: str) -> None:
    """An unknown split, and one that is empty, are named with those that would do."""
    with pytest.raises(UserError, match=message):
        evaluate(run, (split,))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """A folder without settings, and a run without a checkpoint, are one line each."""
    with pytest.raises(UserError, match="no config.yaml"):
        evaluate(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {store: s}\n")
    with pytest.raises(UserError, match='no checkpoint yet; run "pants-dist train'):
        evaluate(tmp_path)


def test_windows_cover_cases_smaller_than_a_patch(run: Path) -> None:
    """A case shorter than the patch is predicted on its own grid."""
    settings, checkpoint = open_run(run)
    with torch.no_grad():
        model, _ = load_model(checkpoint, settings, open_store(settings.data.store))
        logits = predict(model, np.zeros((5, 40, 20), np.int16), settings, (1.0, 1.0, 1.0))
    assert logits.shape == (3, 5, 40, 20)
