import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from small import make_store, trained_here

from conversion import nifti
from pants_dist import cli, config
from pants_dist.detection import component_wise, froc
from pants_dist.errors import UserError
from pants_dist.evaluate import Order, evaluate, failure_lines, open_evaluation
from pants_dist.inference import logits_of
from pants_dist.predict import load_model, open_run
from pants_dist.presets import pants_nnunet_volume
from pants_dist.rows import Rows, _whole_lines, known_rows
from pants_dist.splits import splits_of, validation_cases
from pants_dist.spread import evaluate_on
from pants_dist.store import Store, open_store

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on a small store, one center of three held out."""
    folder = tmp_path_factory.mktemp("evaluate")
    store = make_store(folder / "store", cases=6, edge=40)
    small = ["--data.patch_zyx", "[32, 32, 32]", "--model.channels", "[8, 16, 32]", "--train.steps", "20", "--train.ranks", "1"]
    more = ["--data.held_out_centers", '["Center C"]', "--tracking.wandb", "off", "--loader.kind", "local"]
    more += ["--augment.mirror", "zy"]
    run = trained_here(config.load("debug", ["--data.store", str(store), "--runs", str(folder / "runs"), *small, *more]), "r")
    evaluate(run)
    return run


def store_of(run: Path) -> Store:
    return open_store(open_run(run)[1].data.store)


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


def test_rows_name_patients_and_what_they_were_scored_with(run: Path, tmp_path: Path) -> None:
    """The suspected patient, how many cases the model was trained on, and the tolerance; another one scores anew."""
    table = pd.read_parquet(run / "evaluation" / "held_out" / "cases.parquet")
    assert set(table["patient"]) <= set(store_of(run).cases) and set(table["trained_cases"]) == {2}
    assert set(table["tolerance_mm/liver"]) == {2.0} and set(table["tolerance_mm/pancreas"]) == {5.0}
    (tmp_path / "analysis.yaml").write_text("tolerances_mm: {liver: 12}\n")
    assert cli.main(["evaluate", str(copied(run, tmp_path / "r")), "--analysis", str(tmp_path / "analysis.yaml")]) == 0
    wider = pd.read_parquet(tmp_path / "r" / "evaluation" / "held_out" / "cases.parquet")
    assert set(wider["tolerance_mm/liver"]) == {12.0} and (wider["nsd/liver"] > table["nsd/liver"]).any()
    assert "in mm: liver 12, pancreas 5" in (tmp_path / "r" / "evaluation" / "report.html").read_text()
    listed = pd.read_csv(tmp_path / "r" / "evaluation" / "worst_cases.csv")
    assert list(listed)[:3] == ["kind", "case", "center"] and set(listed["case"]) <= set(store_of(run).cases)


def test_dice_is_that_of_the_masks(run: Path) -> None:
    """A row's Dice of the liver equals the one computed here from the model's logits and the stored masks."""
    (checkpoint, settings), store = open_run(run), store_of(run)
    row = pd.read_parquet(run / "evaluation" / "held_out" / "cases.parquet").iloc[0]
    image, codes = store.read_patch(row["case"], (0, 0, 0), store.shape_zyx(row["case"]))
    logits = torch.cat(list(logits_of([load_model(checkpoint, settings)], image, store.spacing_mm_zyx(row["case"]))), 1)
    predicted = (logits[0] > 0).numpy()
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
    """Rows belong to what they were scored with; each writer keeps to its own file, and all are read."""
    one, two = {"checkpoint": "one"}, {"checkpoint": "two"}
    Rows(tmp_path, one).add({"case": "a", "dsc/liver": 0.5})
    Rows(tmp_path, one, (2, 3)).add({"case": "b", "dsc/liver": 0.25})
    assert set(known_rows(tmp_path, one)) == {"a", "b"} and not known_rows(tmp_path, two)
    Rows(tmp_path, one, (3, 3)).add({"case": "b", "dsc/liver": 0.125})
    assert known_rows(tmp_path, one, lambda row: row["dsc/liver"] > 0.2)["b"]["dsc/liver"] == 0.25
    Rows(tmp_path, two)
    assert set(known_rows(tmp_path, one)) == {"b"}
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == two


def copied(run: Path, to: Path) -> Path:
    """The run without what was scored."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("evaluation*", "wandb"))
    return to


@pytest.mark.parametrize("slices", [2, 3])
def test_slices_share_the_cases(run: Path, slices: int, tmp_path: Path) -> None:
    """Each scores a part, none a case twice; only the last writes tables, equal to those of one that did it all."""
    there = copied(run, tmp_path / "r")
    scored: list[str] = []
    for number in range(1, slices + 1):
        assert not list(there.glob("evaluation/*/cases.parquet"))
        rows = evaluate_on(Order(there), 1, (number, slices), lambda done, total, row: scored.append(row["case"]))
        assert (rows is None) == (number < slices)
    assert sorted(scored) == sorted(set(scored)) and len(scored) == 4
    for split in ("val_seen", "held_out"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(r / "evaluation" / split / "cases.parquet") for r in (there, run)))
        pictures = [{path.name for path in (r / "evaluation" / split / "worst").iterdir()} for r in (there, run)]
        assert pictures[0] == pictures[1] and pictures[0]


def test_processes_of_one_machine_share_them(run: Path, tmp_path: Path) -> None:
    """Two real processes. A damaged case ends its own, which is said; the other's are kept, and the table is the same then."""
    there = copied(run, tmp_path / "r")
    shutil.copytree(store_of(run).path, tmp_path / "store")
    text = (there / "config.yaml").read_text().replace(str(store_of(run).path), str(tmp_path / "store"))
    (there / "config.yaml").write_text(text)
    order, store = Order(there, ("held_out",)), open_store(tmp_path / "store")
    first, second = open_evaluation(order).cases("held_out")
    path, told = store.case_path(second), list[tuple[int, int]]()
    whole = path.read_bytes()
    data, offset = bytearray(whole), store.value(second, "image_offset") + 9
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"case {second}, array image"):
        evaluate_on(order, 2, on_case=lambda done, total: told.append((done, total)))
    assert told[-1] == (1, 2)
    assert set(open_evaluation(order).known("held_out")) == {first}
    path.write_bytes(whole)
    pd.testing.assert_frame_equal(evaluate_on(order), pd.read_parquet(run / "evaluation" / "held_out" / "cases.parquet"))


def test_a_killed_evaluation_leaves_no_process_and_goes_on(run: Path, tmp_path: Path) -> None:
    """SIGKILL once some rows are there: its processes end, too; then only the missing ones are scored, to the same table."""
    there = copied(run, tmp_path / "r")
    command = [sys.executable, "-m", "pants_dist", "evaluate", str(there), "--ranks", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not rows_of(there):
            assert process.poll() is None
            time.sleep(0.02)
        below = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
    assert len(below) >= 3
    deadline = time.monotonic() + 30
    while any(alive(process) for process in below):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = rows_of(there)
    scored: list[str] = []
    evaluate_on(Order(there), 1, on_case=lambda done, total, row: scored.append(row["case"]))
    after = rows_of(there)
    assert len(scored) == len(after) == 4 and len({row["case"] for row in after}) == 4
    assert all(row in after for row in before)
    for split in ("val_seen", "held_out"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(r / "evaluation" / split / "cases.parquet") for r in (there, run)))


def alive(process: psutil.Process) -> bool:
    """Whether it still works: a zombie, which nobody has asked after, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rows_of(run: Path) -> list[dict]:
    """Every whole row on the disk, by whichever writer."""
    return [row for path in run.glob("evaluation/*/rows*.jsonl") for row in _whole_lines(path)[1:]]


COLUMNS = {  # of a row, by the version of scoring; structures' names left out
    2: "age case center center_kind dataset dsc failure hd95_mm hd95_monai_mm lesion_component_logits lesion_component_matched "
    "lesion_components lesion_components_false lesion_components_hit lesion_components_predicted lesion_max_logit "
    "lesion_max_logit_1mm lesion_max_logit_1mm_pancreas lesion_predicted lesion_present manufacturer n_voxels nationality nsd "
    "patient phase predicted_mm3 predicted_voxels reference_mm3 reference_voxels scoring seen sex spacing_z_mm split state "
    "status study_year tolerance_mm trained_cases tumor_flag"
}  # fmt: skip


def test_rows_of_another_version_are_scored_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A version stands for its columns: who adds one raises it. Rows of an older one or of none are scored again."""
    there = tmp_path / "r"
    shutil.copytree(run, there, ignore=shutil.ignore_patterns("evaluation-*", "wandb"))
    log = there / "evaluation" / "held_out" / "rows.jsonl"
    head, *rows = _whole_lines(log)
    assert {name.partition("/")[0] for row in rows for name in row} == set(COLUMNS[head["scoring"]].split())
    del head["scoring"]
    old = [{name: value for name, value in row.items() if not name.startswith(("scoring", "hd95_monai"))} for row in rows]
    log.write_text("".join(json.dumps(line) + "\n" for line in [head, *old]))
    assert cli.main(["evaluate", str(there), "--split", "held_out"]) == 0
    said = capsys.readouterr().out
    assert f"held_out: {len(rows)} rows that are there were made with another scoring; those cases are scored again" in said
    again = pd.read_parquet(there / "evaluation" / "held_out" / "cases.parquet")
    pd.testing.assert_frame_equal(again, pd.read_parquet(run / "evaluation" / "held_out" / "cases.parquet"))
    assert cli.main(["evaluate", str(there), "--split", "held_out"]) == 0
    assert "scored again" not in capsys.readouterr().out


def test_mirroring_is_another_evaluation(run: Path, tmp_path: Path) -> None:
    """Rows scored without are not taken for rows with; the numbers differ."""
    there = copied(run, tmp_path / "r")
    plain, mirrored = (evaluate_on(Order(there, ("held_out",), mirror=mirror), 1) for mirror in (False, True))
    assert (plain["lesion_max_logit"] != mirrored["lesion_max_logit"]).all()


def test_rows_have_what_detection_needs(run: Path) -> None:
    """The greatest logit, volumes in mm3 and voxels, and components with their logits, as every preset reads them."""
    rows = pd.concat([pd.read_parquet(run / "evaluation" / split / "cases.parquet") for split in ("val_seen", "held_out")])
    rows = rows.reset_index(drop=True)
    assert (rows["status"] == "scored").all() and (rows["failure"] == "").all() and np.isfinite(rows["lesion_max_logit"]).all()
    lesion = rows["predicted_voxels/pancreatic_lesion"]
    assert (rows["predicted_mm3/pancreatic_lesion"] == 2.0 * lesion).all()
    assert ((rows["lesion_max_logit"] > 0) == (lesion > 0)).all()
    strongest = rows["lesion_component_logits"].map(lambda logits: max(logits, default=np.nan))
    np.testing.assert_allclose(strongest[lesion > 0], rows.loc[lesion > 0, "lesion_max_logit"])
    assert len(froc(rows)) >= 1 and component_wise(rows)["failures"] == 0


def written(run: Path, to: Path, flipped: bool = False) -> Path:
    """The reference of every held-out case as predictions, with `flipped` in another orientation, which the affine says.

    The pancreas's own file has the lesion in it or, where not `flipped`, has not: it is scored with all that lies in it.
    """
    store = store_of(run)
    for case in open_evaluation(Order(run, ("held_out",))).cases("held_out"):
        codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))[1]
        affine = np.array(store.value(case, "source_affine")).reshape(4, 4)
        masks = {"liver": codes == 1, "pancreas": codes >= 2 if flipped else codes == 2, "pancreatic_lesion": codes == 3}
        for name, mask in masks.items():
            array = nifti.original(mask, affine).astype(np.uint8)
            if flipped:
                last = np.diag([1.0, -1, 1, 1])
                last[1, 3] = array.shape[1] - 1
                nifti.write(to / case / f"{name}.nii.gz", array[:, ::-1].transpose(2, 0, 1), (affine @ last)[:, [2, 0, 1, 3]])
            else:
                nifti.write(to / case / "segmentations" / f"{name}.nii.gz", array, affine)
    return to


@pytest.mark.parametrize("flipped", [False, True])
def test_masks_of_another_system_are_scored(run: Path, tmp_path: Path, flipped: bool) -> None:
    """The reference itself as prediction, in either layout, as it lies or turned: Dice 1 wherever there is any."""
    folder = written(run, tmp_path / "theirs", flipped)
    rows = evaluate_on(Order(run, ("held_out",), folder))
    assert (rows["status"] == "scored").all() and len(rows) == 2
    assert (rows["dsc/liver"] == 1).all() and (rows["dsc/pancreas"] == 1).all()
    present = rows["lesion_present"].astype(bool)
    assert (rows.loc[present, "dsc/pancreatic_lesion"] == 1).all() and (rows["lesion_predicted"] == present).all()
    assert (run / "evaluation-theirs" / "held_out" / "cases.parquet").is_file()


def test_label_maps_of_nnunet_are_scored(run: Path, tmp_path: Path) -> None:
    """One file a case and the dataset.json beside: the pancreas is that and the lesion in it; another numbering scores anew."""
    store, folder = store_of(run), tmp_path / "nnunet"
    folder.mkdir()
    cases = open_evaluation(Order(run, ("held_out",))).cases("held_out")
    for case in cases:
        codes = store.read_patch(case, (0, 0, 0), store.shape_zyx(case))[1]
        affine = np.array(store.value(case, "source_affine")).reshape(4, 4)
        nifti.write(folder / f"{case}.nii.gz", nifti.original(codes, affine), affine)
    said = {"labels": {"background": 0, "liver": 1, "pancreas": 2, "pancreatic_lesion": 3}}
    (folder / "dataset.json").write_text(json.dumps(said))
    rows = evaluate_on(Order(run, ("held_out",), folder))
    for name in ("liver", "pancreas", "pancreatic_lesion"):
        assert (rows[f"dsc/{name}"].dropna() == 1).all() and rows[f"dsc/{name}"].notna().any()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 2, "pancreas": 1}}))
    assert (evaluate_on(Order(run, ("held_out",), folder))["dsc/liver"] == 0).all()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    with pytest.raises(UserError, match="dataset.json: does not say what numbers mean"):
        evaluate_on(Order(run, ("held_out",), folder))


def test_a_case_without_prediction_is_a_failure(run: Path, tmp_path: Path) -> None:
    """A miss with a lesion, a false alarm without, Dice 0, said with the reason; scored anew once the files are there."""
    folder = written(run, tmp_path / "theirs")
    store = store_of(run)
    present = {path.name: store.voxels(path.name).get("pancreatic_lesion", 0) > 0 for path in folder.iterdir()}
    lost, healthy = sorted(present, key=lambda case: not present[case])
    assert present == {lost: True, healthy: False}
    shutil.move(folder / lost, tmp_path / lost)
    rows = evaluate_on(Order(run, ("held_out",), folder))
    assert failure_lines(rows)[0] == f"{lost}: no prediction"
    rows = rows.set_index("case")
    assert rows["status"].to_dict() == {lost: "no prediction", healthy: "scored"}
    assert rows.loc[lost, ["dsc/liver", "dsc/pancreatic_lesion", "lesion_components_hit"]].tolist() == [0, 0, 0]
    assert rows.loc[lost, "lesion_predicted"] == False and np.isnan(rows.loc[lost, "predicted_mm3/liver"])  # noqa: E712
    shutil.move(tmp_path / lost, folder / lost)
    (folder / healthy / "segmentations" / "pancreas.nii.gz").unlink()
    rows = evaluate_on(Order(run, ("held_out",), folder)).set_index("case")
    assert rows["failure"].to_dict() == {lost: "", healthy: "no pancreas.nii.gz, which other cases have"}
    assert rows["lesion_predicted"].all()
    found = pants_nnunet_volume(rows.reset_index(), draws=20)
    assert (found["failures"], found["sensitivity"], found["specificity"]) == (1, 1, 0)


def test_the_verb_says_what_failed_and_what_is_next(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A slice waits for the others; who is through last names the failures and the report."""
    folder = written(run, tmp_path / "said")
    case = sorted(path.name for path in folder.iterdir())[0]
    (folder / case / "segmentations" / "liver.nii.gz").write_bytes(b"")
    words = ["evaluate", str(run), "--split", "held_out", "--predictions", str(folder), "--slice"]
    assert cli.main([*words, "1/2"]) == 0
    assert capsys.readouterr().out.startswith("Next: the other slices")
    assert cli.main([*words, "2/2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{case}: liver.nii.gz: empty file (0 bytes)" and said[1].startswith("1 of 2 cases have no prediction")
    assert said[-1] == f"Next: open {run / 'evaluation-said' / 'report.html'}"
    assert "0 of 1 centers have the 10 cases with and 10 without a lesion" in " ".join(" ".join(said).split())


SPOILT = {
    "shape": (lambda array, affine: (array[:-1], affine), "voxels (z, y, x), the scan has"),
    "place": (lambda array, affine: (array, affine + [[0, 0, 0, 5], [0] * 4, [0] * 4, [0] * 4]), "5.0 mm away from the scan"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_mask_of_another_grid_is_a_failure(run: Path, tmp_path: Path, what: str) -> None:
    """Another shape, or another place in the patient: the file and what is wrong with it are named."""
    folder, (spoil, says) = written(run, tmp_path / "theirs"), SPOILT[what]
    case = sorted(path.name for path in folder.iterdir())[0]
    path = folder / case / "segmentations" / "pancreas.nii.gz"
    volume = nifti.read(path)
    array, affine = spoil(volume.array_ijk, volume.affine)
    nifti.write(path, array.astype(np.uint8), affine)
    rows = evaluate_on(Order(run, ("held_out",), folder)).set_index("case")
    assert (rows["status"] == "no prediction").sum() == 1
    assert rows.loc[case, "failure"].startswith("pancreas.nii.gz: ") and says in rows.loc[case, "failure"]


def test_predictions_of_nothing_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder without any mask of these cases says where they are to lie."""
    assert cli.main(["evaluate", str(run), "--predictions", str(tmp_path)]) == 2
    assert "segmentations/liver.nii.gz" in capsys.readouterr().err


def test_the_validation_sample_is_fixed_and_spread_over_centers(run: Path) -> None:
    """The cases scored during training are the same each time, and take each center in turn."""
    settings, store = open_run(run)[1], store_of(run)
    splits = splits_of(store, settings.data)
    cases = validation_cases(store, splits, settings.validation.cases)
    assert cases == validation_cases(store, splits, settings.validation.cases)
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


def test_what_was_predicted_is_kept(run: Path) -> None:
    """Masks of every case beside the rows: as many voxels of pancreas and lesion as the row says, in one file a split."""
    from pants_dist.keptmasks import kept_in, read_kept

    rows = evaluate(run)
    files = sorted(run.glob("evaluation/*/*.masks"))
    assert [str(path.relative_to(run / "evaluation")) for path in files] == [
        f"{split}/predictions.masks" for split in ("held_out", "val_seen")
    ]
    kept = {case: found for path in files for case, found in kept_in(path).items()}
    assert set(kept) == set(rows["case"])
    for row in rows.to_dict("records"):
        found = kept[row["case"]]
        codes = read_kept(found, (0, 0, 0), found.shape_zyx)
        for bit, name in enumerate(found.structures):
            assert int((codes >> bit & 1).sum()) == row[f"predicted_voxels/{name}"]
