import csv
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pants_dist import checklist as lists
from pants_dist.checklist import Study, checklist
from pants_dist.config import load
from pants_dist.protocol import Analysis
from pants_dist.results import report_results
from tests.scored import scored_rows

ROWS = scored_rows(4, 30).assign(
    sex=["F", "M ", None] * 40, age=[0, 50, 60] * 40, dataset="PanTS", scoring=2, trained_cases=80,
    tumor_flag=lambda rows: rows["lesion_present"] ^ (rows.index < 7), status=["no prediction"] * 3 + ["scored"] * 117,
    **{"tolerance_mm/pancreas": 5.0, "reference_mm3/pancreatic_lesion": lambda rows: 900.0 * rows["lesion_present"]},
)  # fmt: skip


def answers(study: Study) -> dict[str, tuple[str, str]]:
    return {item.asks: (item.here, item.answer) for item in checklist(study)}


def test_the_list_is_filled_from_rows() -> None:
    """Counts of cases, failures, disagreeing truths, unknown cells and held-out centers are those of the table."""
    found = answers(Study(ROWS, 2, Analysis(), declared=False, left_out="2 cases"))
    assert found["Cases without a prediction counted"] == ("yes", "3 of 120, against the system")
    assert "differ in 7 of 120 cases; state how" in found["What counts as truth"][1]
    assert "unknown: sex 40, age 40, phase 0" in found["Missing data and what became of them"][1]
    held = ROWS[~ROWS["seen"]]
    assert found["Testing on external data, kept apart"] == ("yes", f"{len(held)} cases of 1 held-out centers or groups")
    assert found["Who they are, by partition"][1].startswith("sex F 40, M 40, unknown 40; age 55.0 (SD 5.0, 0 not counted);")
    size = f"120 cases, {ROWS['lesion_present'].sum()} with a lesion, trained on 80; "
    assert found["Sample size and how it was determined"] == ("in part", size + "state what it was planned for")
    assert found["Numbers included and excluded"][1].startswith("120 cases, 3 of them without a prediction; left out: 2 cases;")
    assert found["Comparison with other systems on the same cases"][0] == "yes"
    assert found["Primary endpoint and comparisons set beforehand"][0] == "no"
    assert found["Who outlined, how trained, with what tool; the test cases in particular"] == ("authors", "state it")


def test_bare_scores_leave_most_to_the_authors() -> None:
    """A case, a group and a Dice: what needs no more is answered, the rest is no or the authors'."""
    rows = pd.DataFrame({"case": ["a", "b"], "center": "X", "seen": None, "split": "", "dsc/liver": [0.9, 0.8]})
    items = checklist(Study(rows, 1, Analysis(), declared=False))
    said = {item.asks: item.here for item in items}
    absent = ("Calibration", "An overlap and a boundary measure together", "Testing on internal data")
    assert [said[name] for name in absent] == ["no"] * 3
    assert {item.here for item in items if item.part in ("model", "training", "reference standard")} == {"authors"}
    assert said["Spread of scores, not their means alone"] == "yes" and said["Cases without a prediction counted"] == "authors"


def test_a_run_says_how_it_was_trained(tmp_path: Path) -> None:
    """Network, optimizer, augmentation, start and split are those of its config.yaml, the machine that of its summary."""
    words = ["--data.store=/x", "--optim.lr=0.02", "--train.init_from=old.ckpt", "--data.split_file=ood.json"]
    machine, settings = {"python": "3.11.7", "torch": "2.9", "ranks": 8, "gpu": "H100"}, load("baseline", words)
    study = Study(ROWS, 1, Analysis(), False, settings, {"machine": machine})
    found = answers(study)
    assert "rate 0.02" in found["Losses, rates, steps, augmentation, hardware"][1]
    assert "8 ranks on H100" in found["Losses, rates, steps, augmentation, hardware"][1]
    assert found["Initial weights"] == ("yes", "of old.ckpt") and settings.model.name in found["Network, inputs and outputs"][1]
    assert found["Software and versions"][1].startswith("python 3.11.7, torch 2.9;")
    assert "frozen file ood.json" in found["How cases were assigned"][1]
    assert answers(replace(study, summary={}))["Software and versions"][0] == "authors"


def test_every_item_has_its_fact_and_every_fact_its_item() -> None:
    """The table of items and the code know the same facts; an item that nobody but authors can fill has none."""
    with resources.files("pants_dist").joinpath("guidelines.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    study = Study(ROWS, 1, Analysis(), declared=True)
    facts = lists._metrics(study) | lists._data(study) | lists._model(study) | lists._evaluation(study)
    named = [line["fact"] for line in lines if line["fact"]]
    assert sorted(named) == sorted(facts) and len(lines) > 50
    assert {line["here"] for line in lines} == {"yes", "in part", ""}
    assert {line["else here"] for line in lines} == {"no", "authors"}
    assert all(line["else here"] == "authors" for line in lines if not line["fact"] or line["here"] == "in part")


@pytest.mark.parametrize("kind", ["run", "table"])
def test_what_the_list_names_is_there(tmp_path: Path, kind: str) -> None:
    """Every table and figure that an answer names lies in the report's folder; of a run's folder the settings are read."""
    folder = tmp_path / "run" / "evaluation" / "held_out"
    folder.mkdir(parents=True)
    (tmp_path / "analysis.yaml").write_text("draws: 100\n")
    ROWS.to_parquet(folder / "cases.parquet")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"store": "/x"}, "model": {"name": "mednext"}}))
    result = tmp_path / "run" if kind == "run" else folder / "cases.parquet"
    report_results([result], tmp_path / "out", analysis=tmp_path / "analysis.yaml")
    table = pd.read_csv(tmp_path / "out" / "checklist.csv")
    said = table[table["here"].isin(["yes", "in part"])]["how"].str.cat(sep=" ")
    named = set(re.findall(r"[a-z_]+\.(?:csv|svg|json)", said)) - {"config.yaml"}
    assert {"carried_over.csv", "boxes.svg", "analysis.json", "false_positives.csv"} <= named
    assert [name for name in sorted(named) if not (tmp_path / "out" / name).exists()] == []
    assert ("mednext" in said) == (kind == "run") and "CLAIM 2024" in (tmp_path / "out" / "report.html").read_text()
