"""Which of the cases that were found are converted: all, those named, a slice."""

import re
from collections.abc import Sequence
from pathlib import Path

from conversion.source import Found, Source
from pants_dist.errors import UserError


def check_options(workers: int | None, slice_: tuple[int, int] | None, limit: int | None) -> None:
    """Raises UserError for numbers that make no sense."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    if slice_ is not None and not 1 <= slice_[0] <= slice_[1]:
        raise UserError(f"--slice {slice_[0]}/{slice_[1]}: slices count from 1/{slice_[1]} to {slice_[1]}/{slice_[1]}")


def parse_slice(text: str) -> tuple[int, int]:
    """(i, n) of "I/N"; raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found:
        raise UserError(f"--slice {text}: give I/N, such as 1/8 for the first of eight")
    numbers = int(found[1]), int(found[2])
    check_options(None, numbers, None)
    return numbers


def parse_cases(text: str) -> list[str]:
    """Case ids of "A,B,C", or of a file with one a line; raises UserError for a file that cannot be read."""
    path = Path(text)
    try:
        listed = path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else text.split(",")
    except (OSError, ValueError) as error:
        raise UserError(f"--cases {text}: cannot be read ({error}); give a file with one case id a line") from error
    if not (ids := [case.strip() for case in listed if case.strip()]):
        raise UserError(f"--cases {text}: names no case; give ids with commas between them, or a file with one a line")
    return ids


def chosen(sources: list[Source], cases: Sequence[str] | None) -> list[Source]:
    """The cases that are named, all with None. Raises UserError for one that is not there."""
    if cases is None:
        return sources
    if missing := sorted(set(cases) - {source.case for source in sources}):
        raise UserError(f"--cases: no case {missing[0]} in the sources ({len(missing)} of {len(cases)} are missing)")
    return [source for source in sources if source.case in set(cases)]


def sliced(sources: list[Source], slice_: tuple[int, int]) -> list[Source]:
    """Every n-th case from the i-th; archives are not divided, since a part of one takes as long to read as the whole."""
    units = [source.image if source.archived else source.case for source in sources]
    mine = set(list(dict.fromkeys(units))[slice_[0] - 1 :: slice_[1]])
    return [source for source, unit in zip(sources, units, strict=True) if unit in mine]


def unique(found: Sequence[Found]) -> list[Source]:
    """All cases by id. Raises UserError where two datasets have the same one."""
    by_case: dict[str, Source] = {}
    for source in (source for part in found for source in part.sources):
        if (other := by_case.setdefault(source.case, source)) is not source:
            raise UserError(f"case {source.case} is in {other.root} and in {source.root}; give one of them")
    return [by_case[case] for case in sorted(by_case)]
