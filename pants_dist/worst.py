"""The worst cases of an evaluation: missed lesions, false alarms and low scores, each apart; pictures and a table of them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pants_dist.pictures import draw_case, outlined, plane_of, write_plane
from pants_dist.structures import LESION

if TYPE_CHECKING:
    from pants_dist.evaluate import Scored

Row = dict[str, Any]
KINDS = ("missed lesion", "false alarm", "low score")
EACH = 4  # pictures of each kind that a split keeps
LISTED = 50  # cases of each kind in the table


def mean_dice(row: Row) -> float:
    """Mean Dice over the structures that the case could be scored on; 1 where there were none."""
    values = [value for key, value in row.items() if key.startswith("dsc/") and value == value]
    return float(np.mean(values)) if values else 1.0


def kind_of(row: Row) -> str:
    """A missed lesion has no voxel in common with what was predicted; a false alarm is a lesion where there is none."""
    present, predicted = (row.get(name) for name in ("lesion_present", "lesion_predicted"))  # None or NaN: not known
    if present == 1 and row.get(f"dsc/{LESION}") == 0:
        return KINDS[0]
    return KINDS[1] if present == 0 and predicted == 1 else KINDS[2]


def badness(row: Row, primary: str | None = None) -> float:
    """What cases of one kind are ordered by: mm3 missed, mm3 predicted in vain, or what the score lacks to 1.

    That is the score `primary`, or the mean Dice.
    """
    kind = kind_of(row)
    if kind != KINDS[2]:
        volume = row.get(f"{'reference' if kind == KINDS[0] else 'predicted'}_mm3/{LESION}", math.nan)
        return math.inf if volume != volume else float(volume)  # no prediction at all is worse than any
    return 1 - (row[primary] if primary else mean_dice(row))


def worst_of(rows: Iterable[Row], each: int = EACH, primary: str | None = None) -> list[Row]:
    """The worst cases of each kind, at most `each`, worst first; low scores are ranked, and left out, by `primary`."""
    kinds: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for row in rows:
        if kind_of(row) != KINDS[2] or primary is None or row[primary] == row[primary]:
            kinds[kind_of(row)].append(row)
    ordered = [sorted(part, key=lambda row: (-badness(row, primary), row["case"])) for part in kinds.values()]
    return [row for part in ordered for row in part[:each]]


def worst_table(rows: pd.DataFrame, structures: Sequence[str], primary: str | None = None) -> pd.DataFrame:
    """Cases to look at, LISTED of each kind: kind, case, center, what else is known of them, scores, volumes of lesion.

    `primary` is the score that low scores are ranked by; None: the mean Dice.
    """
    found = worst_of(rows.to_dict("records"), LISTED, primary)
    about = [name for name in ("split", "seen", "phase", "manufacturer") if name in rows]
    scores = dict.fromkeys([*([primary] if primary else []), *(f"dsc/{name}" for name in structures)])
    volumes = [name for name in (f"reference_mm3/{LESION}", f"predicted_mm3/{LESION}") if name in rows]
    table = pd.DataFrame(found, columns=rows.columns)[["case", "center", *about, *scores, *volumes]]
    table.insert(0, "kind", [kind_of(row) for row in found])
    return table


def title_of(row: Row) -> str:
    """What stands over the picture of a case: which, where from, and what is wrong."""
    kind = kind_of(row)
    amount = badness(row)
    said = f"mean Dice {mean_dice(row):.2f}"
    if kind != KINDS[2]:
        said = kind + (f", {amount / 1000:.1f} ml" if math.isfinite(amount) else ", no prediction")
    return f"{row['case']} · {row['center']} · {said}"


def keep_picture(folder: Path, scored: "Scored", others: list[Row]) -> bool:
    """Draw a case if it is among the worst so far, as CASE.png and CASE.npz; whether it is. What is among the worst of all is
    so among its writer's, too.
    """
    if scored.row not in worst_of([*others, scored.row]):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    shown = outlined(scored.reference)
    reference, prediction = ({name: masks[name] for name in shown} for masks in (scored.reference, scored.prediction))
    path, title = folder / f"{scored.row['case']}.png", title_of(scored.row)
    draw_case(scored.image_zyx, reference, prediction, scored.spacing_mm_zyx, path, title)
    write_plane(path.with_suffix(".npz"), plane_of(scored.image_zyx, reference, prediction, title))
    return True


def keep_worst(folder: Path, rows: list[Row]) -> None:
    """Take away pictures of cases that are not among the worst after all."""
    wanted = {row["case"] for row in worst_of(rows)}
    for picture in (*folder.glob("*.png"), *folder.glob("*.npz")):
        if picture.stem not in wanted:
            picture.unlink(missing_ok=True)


def pictures_of(rows: pd.DataFrame, folders: Iterable[Path]) -> list[tuple[str, Path]]:
    """Title and PNG file of the worst cases of these rows that have a picture in one of `folders`, kind by kind."""
    places = list(folders)
    found = ((title_of(row), root / f"{row['case']}.png") for row in worst_of(rows.to_dict("records")) for root in places)
    return [(title, path) for title, path in found if path.is_file()]
