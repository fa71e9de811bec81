"""What a store holds, in one look: counts by center, sizes, what cases look like. From the manifest alone."""

from typing import Any

from conversion.journal import quarantined
from pants_dist.casefile import FORMAT_VERSION
from pants_dist.store import Store
from pants_dist.structures import LESION

AXES = "zyx"


def describe(store: Store) -> dict[str, Any]:
    """Facts of a store as plain data (JSON can hold it): sizes in bytes, spacing in mm, ranges as [least, most]."""
    table = store.table
    shapes = list(zip(*table.column("shape_zyx").to_pylist(), strict=True))
    spacings = list(zip(*table.column("spacing_mm_zyx").to_pylist(), strict=True))
    stored, source = (
        sum(size or 0 for size in table.column(name).to_pylist()) for name in ("file_bytes", "source_bytes")
    )
    voxels = [store.voxels(case) for case in store.cases]
    occur = sorted({name for counts in voxels for name, count in counts.items() if count})
    return {
        "store": str(store.path),
        "format_version": FORMAT_VERSION,
        "digest": store.digest,
        "cases": len(store),
        "datasets": _counts(table.column("dataset").to_pylist()),
        "official_splits": _counts(table.column("official_split").to_pylist()),
        "centers": _centers(store, voxels),
        "with_lesion": sum(counts.get(LESION, 0) > 0 for counts in voxels),
        "structures": {name: sum(counts.get(name, 0) > 0 for counts in voxels) for name in occur},
        "shape_zyx": {axis: [min(sizes), max(sizes)] for axis, sizes in zip(AXES, shapes, strict=True)},
        "spacing_mm_zyx": {axis: [min(sizes), max(sizes)] for axis, sizes in zip(AXES, spacings, strict=True)},
        "refused": {case: line["reason"] for case, line in quarantined(store.path).items()},
        "bytes": stored,
        "source_bytes": source,
    }


def _counts(values: list[str]) -> dict[str, int]:
    return {value: values.count(value) for value in sorted(set(values))}


def _centers(store: Store, voxels: list[dict[str, int]]) -> dict[str, dict[str, Any]]:
    """Per center: kind, cases, and how many have a lesion; most cases first."""
    names, kinds = (store.table.column(name).to_pylist() for name in ("center", "center_kind"))
    centers: dict[str, dict[str, Any]] = {}
    for name, kind, counts in zip(names, kinds, voxels, strict=True):
        center = centers.setdefault(name, {"kind": kind, "cases": 0, "with_lesion": 0})
        center["cases"] += 1
        center["with_lesion"] += counts.get(LESION, 0) > 0
    return dict(sorted(centers.items(), key=lambda item: (-item[1]["cases"], item[0])))


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as lines for a person."""
    size, source = facts["bytes"] / 1e9, facts["source_bytes"] / 1e9
    width = max(len(name) for name in facts["centers"])
    return [
        f"store      {facts['store']} (format {facts['format_version']}, digest {facts['digest'][:12]})",
        f"cases      {facts['cases']:,}, {facts['with_lesion']:,} with a lesion",
        f"datasets   {_listed(facts['datasets'])}",
        f"size       {size:.3f} GB, {size / source:.2f} of its sources" if source else f"size       {size:.3f} GB",
        f"voxels     {_ranges(facts['shape_zyx'])}",
        f"spacing    {_ranges(facts['spacing_mm_zyx'])} mm",
        f"structures {len(facts['structures'])} occur: {', '.join(facts['structures'])}",
        *(f"refused    {case}: {reason}" for case, reason in facts["refused"].items()),
        f"centers    {len(facts['centers'])}",
        *(f"  {name:<{width}}  {_counted(center)}" for name, center in facts["centers"].items()),
    ]


def _ranges(by_axis: dict[str, list[float]]) -> str:
    return ", ".join(
        f"{axis} {least:g}" if least == most else f"{axis} {least:g} to {most:g}"
        for axis, (least, most) in by_axis.items()
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or 'none'} {count:,}" for name, count in counts.items())


def _counted(center: dict[str, Any]) -> str:
    return f"{center['kind']:<7}  {center['cases']:>6,} cases, {center['with_lesion']:,} with a lesion"
