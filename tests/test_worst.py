import math
from pathlib import Path

import numpy as np
import pandas as pd

from pants_dist.evaluate import Scored
from pants_dist.worst import keep_picture, keep_worst, kind_of, pictures_of, title_of, worst_of, worst_table

LESION = "pancreatic_lesion"


def row(case: str, present: bool | None, predicted: bool | None, dice: float, missed: float = 0, found: float = 0) -> dict:
    return {
        "case": case, "center": "A", "lesion_present": present, "lesion_predicted": predicted, "dsc/pancreas": 0.5,
        f"dsc/{LESION}": dice, f"reference_mm3/{LESION}": missed, f"predicted_mm3/{LESION}": found,
    }  # fmt: skip


ROWS = [
    row("good", True, True, 0.9, 500, 480),
    row("elsewhere", True, True, 0.0, 300, 200),
    row("missed", True, False, 0.0, 900, 0),
    row("small alarm", False, True, math.nan, 0, 10),
    row("large alarm", False, True, math.nan, 0, 5000),
    row("clear", False, False, math.nan, 0, 0),
    row("poor", True, True, 0.1, 500, 100),
    row("not annotated", None, True, math.nan, math.nan, 70),
    row("failed", False, True, math.nan, 0, math.nan),
]


def test_kinds_stand_apart_and_the_worst_of_each_comes_first() -> None:
    """Missed by volume, also where something was predicted elsewhere; alarms by volume, a failure first; then low scores."""
    found = [row["case"] for row in worst_of(ROWS, each=3)]
    assert found == ["missed", "elsewhere", "failed", "large alarm", "small alarm", "poor", "clear", "not annotated"]
    assert [kind_of(row) for row in worst_of(ROWS, each=1)] == ["missed lesion", "false alarm", "low score"]
    assert title_of(ROWS[4]) == "large alarm · A · false alarm, 5.0 ml" and "no prediction" in title_of(ROWS[8])
    assert title_of(ROWS[6]) == "poor · A · mean Dice 0.30"


def test_the_table_ranks_low_scores_by_the_endpoint() -> None:
    """Those that have none of it are not among them; every line says what is wrong and how much."""
    table = worst_table(pd.DataFrame(ROWS), ["pancreas", LESION], f"dsc/{LESION}")
    assert table["case"].tolist() == ["missed", "elsewhere", "failed", "large alarm", "small alarm", "poor", "good"]
    assert list(table)[:3] == ["kind", "case", "center"] and table[f"predicted_mm3/{LESION}"][3] == 5000
    rows = pd.DataFrame({"case": list("abc"), "center": "A", "dsc/liver": [0.5, 0.0, None]})
    assert worst_table(rows, ["liver"], "dsc/liver")["case"].tolist() == ["b", "a"]


def test_pictures_are_of_the_worst_alone(tmp_path: Path) -> None:
    """Written as cases come, taken away when worse ones came; listed kind by kind with what is wrong."""
    image, mask = np.zeros((4, 20, 20), np.int16), np.zeros((4, 20, 20), bool)
    mask[2, 5:9, 5:9] = True
    rows: list[dict] = []
    for number in range(6):
        scored = row(f"c{number}", False, True, math.nan, 0, 100 * (number + 1))
        keep_picture(tmp_path, Scored(scored, image, {LESION: ~mask & mask}, {LESION: mask}, (5, 1, 1)), rows)
        rows.append(scored)
    assert len(list(tmp_path.glob("*.png"))) == 6
    keep_worst(tmp_path, rows)
    assert {path.stem for path in tmp_path.iterdir()} == {"c2", "c3", "c4", "c5"}
    (tmp_path / "c4.png").unlink()
    assert [path.name for _, path in pictures_of(pd.DataFrame(rows), [tmp_path])] == ["c5.png", "c3.png", "c2.png"]
