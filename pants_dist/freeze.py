"""A split as a file that does not change: every id, and what decided, under one digest that runs and reports cite."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pants_dist import __version__
from pants_dist.cases import aliases
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.settings import FROZEN, Data
from pants_dist.splits import SPLITS, Splits, digest_of, hospitals, lesions, patients_of, read_split, split_of
from pants_dist.stats import FEWEST


def freeze(frame: pd.DataFrame, data: Data, store_digest: str) -> dict[str, Any]:
    """What a split file holds, for `frame` (splits.COLUMNS of a store's manifest, indexed by case) under these settings.

    settings; held_out; folds: hospitals in the order of data.leave_one_center_out; splits and left_out: ids by split and
    by reason; clusters: ids of each suspected patient with several scans; aliases: spelling -> hospital; centers: see
    `center_table`; store and digest. Raises UserError where the settings do not fit these cases.
    """
    if data.split_file is not None:
        raise UserError(f"data.split_file is {data.split_file}, which is frozen already; set it to null to freeze a split")
    splits = split_of(frame, data)
    settings = {name: getattr(data, name) for name in FROZEN}
    content = {
        "made_by": f"pants-dist {__version__}",
        "store": {"digest": store_digest, "cases": len(frame)},
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        "held_out": list(splits.held_out),
        "folds": hospitals(frame),
        "centers": center_table(frame, splits),
        "aliases": dict(aliases()),
        "splits": {split: _ids(splits.by_case, split) for split in SPLITS},
        "left_out": {reason: _ids(splits.reasons, reason) for reason in splits.left_out()},
        "clusters": _clusters(frame),
    }
    return {"digest": digest_of(content), **content}


def center_table(frame: pd.DataFrame, splits: Splits) -> list[dict[str, Any]]:
    """A row a center, most cases first: its kind, cases, how many with and without a lesion, and how many in each split.

    A hospital is evaluable where, held out, it would have FEWEST scans or more with a lesion in the reference and as many
    without: from there on its sensitivity, its specificity and its mean Dice on lesions each have an interval.
    """
    lesion, single = lesions(frame), set(hospitals(frame))
    scored = frame["official_split"] != "test"
    rows = []
    for center, cases in frame.groupby("center").groups.items():
        enough = ((lesion[cases] == what)[scored[cases]].sum() >= FEWEST for what in ("lesion", "none"))
        split = splits.by_case[cases].value_counts()
        rows.append({
            "center": center, "kind": frame.loc[cases[0], "center_kind"], "cases": len(cases),
            "with_lesion": int((lesion[cases] == "lesion").sum()), "without_lesion": int((lesion[cases] == "none").sum()),
            **{name: int(split.get(name, 0)) for name in SPLITS}, "left_out": int(split.get("", 0)),
            "evaluable": center in single and all(enough),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (-row["cases"], row["center"]))


def write_split(path: Path, content: Mapping[str, Any]) -> None:
    """Write a split file. Raises UserError where another split stands there: a frozen one is never overwritten."""
    if path.exists():
        if read_split(path)["digest"] == content["digest"]:
            return
        raise UserError(f"--out {path}: holds another split, and frozen ones do not change; give a new name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def lines(content: Mapping[str, Any]) -> Iterator[str]:
    """The split as a table for a person, a line a center; the numbers of folds stand before the hospitals."""
    centers, folds = content["centers"], {name: number for number, name in enumerate(content["folds"])}
    width = max(len(row["center"]) for row in centers)
    heads = ("cases", "lesion", "none", *SPLITS, "left out")
    yield f"{'fold':>4}  {'center':<{width}}  {'kind':<7} " + " ".join(f"{head:>8}" for head in heads) + "  evaluable"
    for row in centers:
        counts = (row[name] for name in ("cases", "with_lesion", "without_lesion", *SPLITS, "left_out"))
        numbers = " ".join(f"{count:>8,}" for count in counts)
        name = f"{folds.get(row['center'], ''):>4}  {row['center']:<{width}}  {row['kind']:<7}"
        yield f"{name} {numbers}  {'yes' if row['evaluable'] else 'no'}"
    yield from _sums(content)


def _sums(content: Mapping[str, Any]) -> Iterator[str]:
    evaluable = sum(row["evaluable"] for row in content["centers"])
    yield f"evaluable  {evaluable} of {len(content['folds'])} hospitals: {FEWEST} scans or more with a lesion, and without"
    yield f"held out   {', '.join(content['held_out']) or 'no center'}"
    yield "cases      " + ", ".join(f"{split} {len(cases):,}" for split, cases in content["splits"].items() if cases)
    for reason, cases in content["left_out"].items():
        yield f"left out   {reason}: {len(cases):,}"
    clustered = sum(map(len, content["clusters"]))
    yield f"clusters   {len(content['clusters']):,} suspected patients with {clustered:,} scans"
    yield f"digest     {content['digest']}"


def _ids(values: pd.Series, value: str) -> list[str]:
    return sorted(values.index[values == value])


def _clusters(frame: pd.DataFrame) -> list[list[str]]:
    members: dict[str, list[str]] = {}
    for case, first in sorted(patients_of(frame).items()):
        members.setdefault(first, []).append(case)
    return [cases for cases in members.values() if len(cases) > 1]
