"""The verbs of data: doctor, phantom, convert, verify, export, info, cohort, split. What is heavy is imported by its verb."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pants_dist.errors import UserError
from pants_dist.parser import Given, Parser, add_convert, add_settings, ends, settings_of


def doctor(given: Given) -> int:
    """What this machine has and lacks, each lack with its cure."""
    from pants_dist.doctor import findings

    found = findings()
    for finding in found:
        cure = f"; {finding.cure}" if finding.cure else ""
        print(f"{finding.level:<8}{finding.what:<11}{finding.found}{cure}")
    missing = [finding.what for finding in found if finding.level == "missing"]
    after = f"mend what is missing ({', '.join(missing)}), then: pants-dist doctor" if missing else "pants-dist demo"
    return ends(1 if missing else 0, after)


def phantom(given: Given) -> int:
    """Make a synthetic cohort of several centers in PanTS's layout."""
    from pants_dist.phantom import make_phantom
    from pants_dist.progress import shown

    made = itertools.count(1)
    with shown("phantom") as tell:
        make_phantom(
            given.out, given.cases, given.centers, given.seed, given.scale,
            on_case=lambda case: tell(next(made), given.cases, case),
        )  # fmt: skip
    return ends(0, "pants-dist convert", given.out, f"{given.out}-store")


def convert(given: Given) -> int:
    """Repack datasets into a store; the same command again goes on where it stopped."""
    from conversion.choice import parse_cases, parse_slice
    from conversion.run import convert as repack
    from pants_dist.progress import Conversion, shown

    with shown("convert") as tell:
        summary = repack(
            given.sources, given.store, layout=given.layout, metadata=given.metadata, workers=given.workers, ray=given.ray,
            slice_=parse_slice(given.slice) if given.slice else None, limit=given.limit,
            cases=parse_cases(given.cases) if given.cases else None, dry_run=given.dry_run,
            on_event=Conversion(tell).hears,
        )  # fmt: skip
    return ends(*_after_conversion(summary, given.dry_run))


def _after_conversion(summary: Any, dry_run: bool) -> tuple[Any, ...]:
    """Prints what a conversion came to, and what the store holds now; returns its exit code and what to do next."""
    from pants_dist.info import describe, lines
    from pants_dist.store import open_store

    if dry_run:
        return 0, f"the same command without --dry-run converts {len(summary.planned):,} cases"
    converted, kept, refused = (len(part) for part in (summary.converted, summary.kept, summary.refused))
    print(f"{converted:,} cases converted, {kept:,} there already, {refused:,} refused")
    if summary.elsewhere:
        return summary.exit_code, f"convert the other slices: {summary.elsewhere:,} cases are still to do"
    if not summary.digest:
        return summary.exit_code, "mend the sources, then run the same command: no case could be converted"
    print("\n".join(lines(describe(open_store(summary.store)))))
    return summary.exit_code, "pants-dist verify", summary.store


def verify(given: Given) -> int:
    """Prove a store whole, and (--against) equal to its sources; one line a damaged case, exit code 1."""
    from conversion.verify import verify as find_damage
    from pants_dist.progress import shown

    with shown("verify") as tell:
        damage = find_damage(given.store, given.against, on_case=tell)
    print("\n".join(damage) or f"{given.store}: whole")
    if damage:
        return ends(1, f"pants-dist convert {given.against or 'SRC'}", given.store)
    return ends(0, "pants-dist train --config debug.yaml --data.store", given.store)


def export(given: Given) -> int:
    """A case back as NIfTI: OUT/ct.nii.gz and OUT/segmentations/<structure>.nii.gz."""
    from conversion.export import export as write_nifti

    files = write_nifti(given.store, given.case, given.out)
    print(f"{files[0]} and {len(files) - 1} masks in {given.out / 'segmentations'}")
    return ends(0, "open it in a viewer such as ITK-SNAP:", files[0])


def info(given: Given) -> int:
    """What a store holds: cases, centers, sizes, refused cases."""
    from pants_dist.info import describe, lines
    from pants_dist.store import open_store

    facts = describe(open_store(given.store))
    print(json.dumps(facts, indent=2, ensure_ascii=False) if given.json else "\n".join(lines(facts)))
    after = "pants-dist train --config debug.yaml --data.store"
    return ends(0, after, given.store, to=sys.stderr if given.json else sys.stdout)


def cohort(given: Given) -> int:
    """The population table of a store or of metadata.xlsx, as published and put right, with tests of two groups."""
    from rich.console import Console

    from pants_dist import population

    if given.out:
        population.check_ending(given.out)
    found = population.population(_scans_of(given.source), given.by)
    if given.out:
        population.write_table(given.out, found)
    if given.json:
        print(json.dumps(population.facts(found), indent=2, ensure_ascii=False))
    else:
        population.print_population(found, Console())
    after = "pants-dist split --out split.json" if given.source.is_dir() else "pants-dist convert SRC STORE --metadata"
    return ends(0, after, given.source, to=sys.stderr if given.json else sys.stdout)


def _scans_of(source: Path) -> Any:
    """The scans of a store's folder, or of a file of metadata."""
    from pants_dist.cohort import scans_of_metadata, scans_of_store
    from pants_dist.progress import shown
    from pants_dist.store import open_store

    if source.is_file():
        return scans_of_metadata(source)
    if source.suffix.lower() in (".xlsx", ".xlsm", ".csv") and not source.exists():
        raise UserError(f"metadata {source}: no such file; give the released metadata.xlsx, or a store's folder")
    with shown("ducts") as tell:
        return scans_of_store(open_store(source), tell)


def split(given: Given) -> int:
    """Freeze who is trained on and who is held out, as a file that runs can use (data.split_file) and cite."""
    from pants_dist.freeze import freeze, lines, write_split
    from pants_dist.splits import COLUMNS
    from pants_dist.store import open_store

    setattr(given, "data.store", str(given.store))
    store, settings = open_store(given.store), settings_of(given)
    content = freeze(store.frame(*COLUMNS), settings.data, store.digest)
    write_split(given.out, content)
    print("\n".join(lines(content)))
    after = "pants-dist train --config debug.yaml --data.store"
    return ends(0, after, given.store, "--data.split_file", given.out)


def add_data_verbs(add: Callable[[Callable[[Given], int]], Parser]) -> None:
    """The options of all of these."""
    add(doctor)
    verb = add(phantom)
    verb.add_argument("out", metavar="OUT", type=Path, help="new folder for the cohort")
    verb.add_argument("--cases", type=int, default=24, help="scans (default %(default)s)")
    verb.add_argument("--centers", type=int, default=6, help="hospitals that they come from (default %(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="another seed, another cohort (default %(default)s)")
    verb.add_argument("--scale", type=float, default=0.25, help="size along each axis, 1: full (default %(default)s)")
    verb = add(convert)
    add_convert(verb)
    verb = add(verify)
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--against", metavar="SRC", type=Path, help="compare every voxel with this dataset, too")
    verb.add_argument("--layout", default="auto", help="how SRC is laid out (default: found out)")
    verb = add(export)
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("case", metavar="CASE", help="id of the case, like PanTS_00000001")
    verb.add_argument("out", metavar="OUT", type=Path, help="folder for the files")
    verb = add(info)
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--json", action="store_true", help="as JSON")
    _add_cohort(add(cohort))
    _add_split(add(split))


def _add_cohort(verb: Parser) -> None:
    groups = ("split", "sex", "phase", "center", "manufacturer", "nationality")
    verb.add_argument("source", metavar="STORE_OR_XLSX", type=Path, help="folder of a store, or PanTS's metadata.xlsx")
    verb.add_argument("--by", choices=groups, default="split", help="the groups (default: %(default)s, the official one)")
    verb.add_argument("--json", action="store_true", help="every figure of every group as JSON")
    verb.add_argument("--out", metavar="FILE", type=Path, help="the table as FILE.csv or FILE.md, too")


def _add_split(verb: Parser) -> None:
    from pants_dist.settings import FROZEN

    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="the split, as JSON; one that is there stays")
    verb.add_argument("--config", metavar="FILE", help="settings as YAML, or the name of a shipped file (default: none)")
    verb.usage = "pants-dist split STORE --out FILE [--config FILE] [--data.setting VALUE ...]"
    add_settings(verb, [f"data.{name}" for name in ("clusters", *FROZEN)])
