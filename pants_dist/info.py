"""What a store holds, in one look: counts by center and split, sizes, oddities, doubles. From the manifest alone."""

import json
from collections import Counter
from typing import Any

from conversion.journal import quarantined
from pants_dist.casefile import FORMAT_VERSION
from pants_dist.duplicates import Clusters, suspects
from pants_dist.store import Store
from pants_dist.structures import LESION

AXES = "zyx"
SHOWN_REFUSED = 20


def describe(store: Store) -> dict[str, Any]:
    """Facts of a store as plain data (JSON can hold it): sizes in bytes, spacing in mm, ranges as [least, most]."""
    table = store.table
    shapes = list(zip(*table.column("shape_zyx").to_pylist(), strict=True))
    spacings = list(zip(*table.column("spacing_mm_zyx").to_pylist(), strict=True))
    stored, source = (
        sum(size or 0 for size in table.column(name).to_pylist()) for name in ("file_bytes", "source_bytes")
    )
    rows = table.to_pylist()
    voxels = [json.loads(row["voxels"]) for row in rows]
    occur = sorted({name for counts in voxels for name, count in counts.items() if count})
    return {
        "store": str(store.path),
        "format_version": FORMAT_VERSION,
        "digest": store.digest,
        "cases": len(store),
        "datasets": _counts(table.column("dataset").to_pylist()),
        "official_splits": _counts(table.column("official_split").to_pylist()),
        "centers": _centers(rows, voxels),
        "with_lesion": sum(counts.get(LESION, 0) > 0 for counts in voxels),
        "structures": {name: sum(counts.get(name, 0) > 0 for counts in voxels) for name in occur},
        "shape_zyx": {axis: [min(sizes), max(sizes)] for axis, sizes in zip(AXES, shapes, strict=True)},
        "spacing_mm_zyx": {axis: [min(sizes), max(sizes)] for axis, sizes in zip(AXES, spacings, strict=True)},
        "problems": problems(rows),
        "suspected_duplicates": {words: _clusters(found) for words, found in suspects(rows).items()},
        "refused": {case: line["reason"] for case, line in quarantined(store.path).items()},
        "bytes": stored,
        "source_bytes": source,
        "files": len(rows) + 1,
        "source_files": sum(len(json.loads(row["sources"])) for row in rows),
    }


def problems(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Cases by kind of note (what stands before its colon), most cases first."""
    kinds = Counter(kind for row in rows for kind in {note.partition(":")[0] for note in row["notes"]})
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _clusters(found: Clusters) -> dict[str, Any]:
    return {"cases": found.cases, "crossing_train_and_test": found.crossing, "groups": [list(g) for g in found.groups]}


def _counts(values: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _centers(rows: list[dict[str, Any]], voxels: list[dict[str, int]]) -> dict[str, dict[str, Any]]:
    """Per center: kind, cases, how many are official train and test, and how many have a lesion; most cases first."""
    centers: dict[str, dict[str, Any]] = {}
    for row, counts in zip(rows, voxels, strict=True):
        fresh = {"kind": row["center_kind"], "cases": 0, "train": 0, "test": 0, "with_lesion": 0}
        center = centers.setdefault(row["center"], fresh)
        center["cases"] += 1
        center["with_lesion"] += counts.get(LESION, 0) > 0
        if row["official_split"]:
            center[row["official_split"]] += 1
    return dict(sorted(centers.items(), key=lambda item: (-item[1]["cases"], item[0])))


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as lines for a person."""
    width = max(len(name) for name in facts["centers"])
    heads = f"  {'':<{width}}  {'':<7} {'cases':>7} {'train':>7} {'test':>7} {'lesion':>7}"
    return [
        f"store      {facts['store']} (format {facts['format_version']}, digest {facts['digest'][:12]})",
        f"cases      {facts['cases']:,}, {facts['with_lesion']:,} with a lesion",
        f"datasets   {_listed(facts['datasets'])}",
        f"size       {_size(facts)}",
        f"voxels     {_ranges(facts['shape_zyx'])}",
        f"spacing    {_ranges(facts['spacing_mm_zyx'])} mm",
        f"structures {len(facts['structures'])} occur: {', '.join(facts['structures'])}",
        *(f"note       {kind}: {count:,} of {facts['cases']:,} cases" for kind, count in facts["problems"].items()),
        *(_suspected(words, found) for words, found in facts["suspected_duplicates"].items() if found["groups"]),
        *_refused(facts["refused"]),
        f"centers    {len(facts['centers'])}",
        heads,
        *(f"  {name:<{width}}  {_counted(center)}" for name, center in facts["centers"].items()),
    ]


def _size(facts: dict[str, Any]) -> str:
    size, source = facts["bytes"], facts["source_bytes"]
    after = f"{size / 1e9:.3f} GB in {facts['files']:,} files"
    return f"{after}, {size / source:.2f} of {source / 1e9:.3f} GB in {facts['source_files']:,}" if source else after


def _suspected(words: str, found: dict[str, Any]) -> str:
    crossing = found["crossing_train_and_test"]
    return f"doubles?   {words}: {len(found['groups']):,} groups of {found['cases']:,} cases, {crossing:,} cross train and test"


def _refused(refused: dict[str, str]) -> list[str]:
    shown = [f"refused    {case}: {reason}" for case, reason in list(refused.items())[:SHOWN_REFUSED]]
    more = len(refused) - len(shown)
    return [*shown, f"refused    and {more:,} more: --json lists them all"] if more else shown


def _ranges(by_axis: dict[str, list[float]]) -> str:
    return ", ".join(
        f"{axis} {least:g}" if least == most else f"{axis} {least:g} to {most:g}"
        for axis, (least, most) in by_axis.items()
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or 'none'} {count:,}" for name, count in counts.items())


def _counted(center: dict[str, Any]) -> str:
    numbers = (center[name] for name in ("cases", "train", "test", "with_lesion"))
    return f"{center['kind']:<7} " + " ".join(f"{number:>7,}" for number in numbers)
