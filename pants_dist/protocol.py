"""What an analysis set out to do, written down beforehand: analysis.yaml, whose digest every report carries."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from pants_dist.comparisons import ADJUSTMENTS
from pants_dist.config import nearest
from pants_dist.detection import SPECIFICITY
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.metrics import TOLERANCES_MM
from pants_dist.resampling import DRAWS
from pants_dist.structures import LESION


@dataclass(frozen=True)
class Analysis:
    """The choices that could be made after the results are known, and should not be."""

    primary: str = f"dsc/{LESION}"  # the endpoint that figures and comparisons speak of: dsc/ or nsd/ and a structure
    tolerances_mm: Mapping[str, float] = field(default_factory=lambda: dict(TOLERANCES_MM))  # of surface Dice; others 2 mm
    lesion_voxels: int = 0  # a patient is positive above so many predicted voxels of lesion
    specificity: float = SPECIFICITY  # at which the threshold is fixed on seen tuning cases
    comparisons: tuple[tuple[str, str], ...] = ()  # pairs of models that make the family; none: every pair
    crossings: tuple[tuple[str, str], ...] = (("sex", "age_band"), ("phase", "slice_band"))  # subgroups by two columns
    prevalence: float = 0.01  # of lesions among those scanned, for which PPV and NPV are given
    adjust: str = "holm"  # p values of the family: holm or bh
    draws: int = DRAWS  # of every bootstrap
    seed: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of all choices, in hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_analysis(path: Path | None) -> Analysis:
    """The analysis in a YAML file; what it leaves out is as by default. Raises UserError for what it cannot mean."""
    if path is None:
        return Analysis()
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"analysis {path}: cannot be read ({str(error).splitlines()[0]}); give a YAML file") from error
    known = {entry.name for entry in fields(Analysis)}
    if not isinstance(given, dict):
        raise UserError(f"analysis {path}: {given!r} is no mapping; give lines like primary: dsc/{LESION}")
    for name in given:
        if name not in known:
            raise UserError(f"analysis {path}: no choice {name}{nearest(str(name), known)}")
    return _checked(given, path)


def _checked(given: dict[str, Any], path: Path) -> Analysis:
    """Each choice in its range."""
    rules = {
        "primary": (lambda v: str(v).partition("/")[0] in ("dsc", "nsd") and "/" in v, "dsc/ or nsd/ and a structure"),
        "tolerances_mm": (
            lambda v: isinstance(v, dict) and all(_number(mm) and mm > 0 for mm in v.values()), "millimeters by structure"
        ),
        "lesion_voxels": (lambda v: isinstance(v, int) and v >= 0, "a number of voxels from 0"),
        "specificity": (lambda v: _number(v) and 0 < v < 1, "a share between 0 and 1"),
        "comparisons": (_pairs, "pairs of models, [[one, other], ...]"),
        "crossings": (_pairs, "pairs of columns, [[sex, phase], ...]"),
        "prevalence": (lambda v: _number(v) and 0 < v < 1, "a share between 0 and 1"),
        "adjust": (lambda v: v in ADJUSTMENTS, " or ".join(ADJUSTMENTS)),
        "draws": (lambda v: isinstance(v, int) and v >= 100, "a number from 100"),
        "seed": (lambda v: isinstance(v, int) and v >= 0, "a number from 0"),
    }  # fmt: skip
    for name, value in given.items():
        holds, wanted = rules[name]
        if isinstance(value, bool) or not holds(value):
            raise UserError(f"analysis {path}: {name} is {value!r}; give {wanted}")
    for name in {"comparisons", "crossings"} & set(given):
        given = {**given, name: tuple((str(one), str(other)) for one, other in given[name])}
    return Analysis(**given | {"tolerances_mm": {**TOLERANCES_MM, **given.get("tolerances_mm", {})}})


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def keep_analysis(out: Path, analysis: Analysis) -> list[tuple[str, list[str]]]:
    """Write OUT/analysis.json: all choices, their digest, and those of other analyses that were reported there before.

    Returns the other ones, oldest first: (digest, choices that differ from this one's).
    """
    path, choices = out / "analysis.json", json.loads(json.dumps(asdict(analysis)))
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
        ones = [*before.pop("earlier", []), before]
        others = [dict(one) for one in ones if one["digest"] != analysis.digest]
    except (OSError, ValueError, KeyError, TypeError):
        others = []
    with replacing(path) as file:
        kept = {"digest": analysis.digest, **choices, "earlier": others}
        file.write(json.dumps(kept, indent=2, sort_keys=True).encode())
    return [(one["digest"], [name for name in choices if one.get(name) != choices[name]]) for one in others]


def spoken(analysis: Analysis) -> list[tuple[str, str]]:
    """Every choice as (name, value) in words."""
    return [(name, _words(value)) for name, value in asdict(analysis).items()]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one:g}" for name, one in value.items())
    if isinstance(value, tuple):
        return ", ".join(" and ".join(pair) for pair in value) or "every pair"
    return f"{value:,}" if isinstance(value, int) else str(value)
