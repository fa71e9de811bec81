"""Which split each case belongs to: by PanTS's own split and the hospitals held out, or as frozen in a file.

The unit is the hospital. Scans of one are never on both sides, and neither are the scans of a suspected patient
(duplicates.py). Everything is drawn by hashes of ids, without a seed: adding cases moves the others as little as can be.
"""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd

from pants_dist.cases import UNKNOWN, hospital, listing, may_contain
from pants_dist.duplicates import patients
from pants_dist.errors import UserError
from pants_dist.settings import FROZEN, Data
from pants_dist.structures import LESION

if TYPE_CHECKING:
    from pants_dist.store import Store

SPLITS = ("train", "val_seen", "held_out", "test")
DEFAULT_SPLITS = ("val_seen", "held_out")  # are scored where nothing else is said
COLUMNS = (  # of the manifest: what decides a case's split
    "center", "center_kind", "official_split", "dataset", "sex", "age", "metadata", "voxels", "annotated",
    "source_shape_ijk", "spacing_mm_zyx", "shape_zyx", "image_bytes", "image_crc32",
)  # fmt: skip

POOL, NAMES_HELD_OUT, NO_CENTER = "pool of centers", "pool that names a held-out center", "unknown center"
SUSPECTED, NOT_DRAWN, NOT_FROZEN = "suspected patient of a held-out or test case", "not in the subset", "not in the split file"


@dataclass(frozen=True)
class Splits:
    """Who is in which split.

    `by_case` is one of SPLITS for each case, or "" for one left out, whose reason is in `reasons` ("" for the others);
    both are indexed by case id. `held_out` are the hospitals held out, sorted. Of a split file: `absent` are its cases
    that the store lacks, sorted, and `digest` is its own.
    """

    by_case: pd.Series
    reasons: pd.Series
    held_out: tuple[str, ...]
    absent: tuple[str, ...] = ()
    digest: str = ""

    def counts(self) -> dict[str, int]:
        """Cases in each split that has any, in the order of SPLITS."""
        found = self.by_case.value_counts()
        return {split: int(found[split]) for split in SPLITS if split in found}

    def left_out(self) -> dict[str, int]:
        """Cases left out, by reason, most first."""
        found = self.reasons[self.reasons != ""].value_counts()
        return {str(reason): int(count) for reason, count in found.items()}

    def in_words(self) -> str:
        """One line of all counts, and the digest that they were frozen under."""
        parts = [f"{split} {count:,}" for split, count in self.counts().items()]
        parts += [f"left out as {reason} {count:,}" for reason, count in self.left_out().items()]
        parts += [f"absent from the store {len(self.absent):,}"] if self.absent else []
        return ", ".join(parts + ([f"frozen as {self.digest}"] if self.digest else []))


def split_of(frame: pd.DataFrame, data: Data, patient: Mapping[str, str] | None = None) -> Splits:
    """The split of every case of `frame` (COLUMNS of the manifest, indexed by case id).

    The official test cases stay apart, whatever is held out. A held-out hospital's other cases are "held_out"; scans of
    pools and of unknown centers, which may be its own, are left out unless `data` keeps them. Of each seen center a share
    `data.val_fraction` (at least one patient of two) is "val_seen", a patient's scans together. `patient`: what patients_of
    says of the frame, where that is known already.
    Raises UserError where the settings do not fit these cases, with the values that would.
    """
    if data.split_file is not None:
        return _thawed(frame, Path(data.split_file), data)
    held = _held_out(frame, data)
    split = frame["center"].isin(held).map({True: "held_out", False: "train"}).astype(object).rename(None)
    reasons = _hidden(frame, held, data) if held else pd.Series("", frame.index, dtype=object)
    reasons[(frame["official_split"] == "test") | (split == "held_out")] = ""
    split[reasons != ""] = ""
    split[frame["official_split"] == "test"] = "test"
    if held and not (split == "train").any():
        raise UserError(
            f"{_held_by(data)}: {listing(held)} held out leaves no cases to train on among the store's "
            f"{len(frame)}; hold out fewer of the {len(hospitals(frame))} hospitals"
        )
    patient = patients_of(frame) if patient is None else patient
    leaks = _leaks(split, patient, data)
    split[leaks], reasons[leaks] = "", SUSPECTED
    split[_validation(frame, split, patient, data.val_fraction)] = "val_seen"
    unused = _beyond_subset(frame, split, data.subset)
    split[unused], reasons[unused] = "", NOT_DRAWN
    return Splits(split, reasons, held)


def splits_of(store: "Store", data: Data, patient: Mapping[str, str] | None = None) -> Splits:
    """The split of a store's cases. A second or so for 36,390: worked out once and handed on."""
    return split_of(store.frame(*COLUMNS), data, patient)


def validation_cases(store: "Store", splits: Splits, most: int | None) -> list[str]:
    """The fixed sample that is scored during training: so many of seen centers, and of held-out ones (in_turn). None: all."""
    frame = store.frame("center", "voxels", "annotated")
    return [case for split in DEFAULT_SPLITS for case in in_turn(frame, splits.by_case, split)[:most]]


def hospitals(frame: pd.DataFrame) -> list[str]:
    """The hospitals that can be held out, sorted: those with a case outside the official test split."""
    return sorted(set(frame.loc[_single(frame) & (frame["official_split"] != "test"), "center"]))


def patients_of(frame: pd.DataFrame) -> dict[str, str]:
    """Case -> the first case of its suspected patient (duplicates.patients)."""
    columns = [frame[name].to_numpy(object) for name in COLUMNS]  # cells one by one would take longer than all the rest
    names = ("case", *COLUMNS)
    return patients([dict(zip(names, cells, strict=True)) for cells in zip(frame.index, *columns, strict=True)])


def lesions(frame: pd.DataFrame) -> pd.Series:
    """What the reference says of each case: "lesion", "none", or "unknown" where lesions were not annotated."""
    seen = [json.loads(voxels).get(LESION, 0) > 0 for voxels in frame["voxels"]]
    asked = [LESION in annotated for annotated in frame["annotated"]]
    words = ["lesion" if has else "none" if looked else "unknown" for has, looked in zip(seen, asked, strict=True)]
    return pd.Series(words, frame.index, dtype=object)


def spread(strata: Mapping[str, Hashable], salt: str) -> list[str]:
    """The names in a random order of which every beginning holds each stratum in its share (systematic sampling).

    The r-th of the m names of a stratum, by hash, stands at (r + 0.5) / m.
    """
    sizes: dict[Hashable, int] = {}
    for stratum in strata.values():
        sizes[stratum] = sizes.get(stratum, 0) + 1
    ranks, places = dict.fromkeys(sizes, 0), {}
    for name in sorted(strata, key=lambda name: _hash(salt + name)):
        stratum = strata[name]
        places[name] = (ranks[stratum] + 0.5) / sizes[stratum]
        ranks[stratum] += 1
    return sorted(places, key=lambda name: (places[name], _hash(salt + name)))


def in_turn(frame: pd.DataFrame, split: pd.Series, name: str) -> list[str]:
    """The cases of a split, center by center in turn, and of each center with and without a lesion in turn.

    Every second center begins with a lesion, so that the first cases of all are of both kinds.
    """
    rows = frame[split == name]
    center, lesion = rows["center"], lesions(rows) == "lesion"
    begins = lesion == (center.rank(method="dense") % 2 == 1)
    place = 2 * rows.groupby(["center", lesion.rename("lesion")]).cumcount() + ~begins
    turn = place.groupby(center).rank(method="first")
    return rows.assign(turn=turn).sort_values(["turn", "center"], kind="stable").index.tolist()


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 of a frozen split without its digest, as JSON with sorted keys and no blanks, UTF-8."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_split(path: Path) -> dict[str, Any]:
    """A frozen split. Raises UserError where the file is none, or is not as it was frozen."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest, *_ = (content[part] for part in ("digest", "settings", "held_out", "splits", "left_out"))
    except FileNotFoundError:
        raise UserError(f'split {path}: no such file; make one with "pants-dist split STORE --out {path}"') from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'split {path}: is no frozen split; make one with "pants-dist split STORE --out FILE"') from None
    if digest_of(content) != digest:
        raise UserError(f"split {path}: was changed after it was frozen (its digest differs); restore it, or freeze another")
    return content


def _single(frame: pd.DataFrame) -> pd.Series:
    return frame["center_kind"] == "single"


def _held_by(data: Data) -> str:
    ways = ("held_out_fraction", "leave_one_center_out")
    return "data." + next((way for way in ways if getattr(data, way) is not None), "held_out_centers")


def _held_out(frame: pd.DataFrame, data: Data) -> tuple[str, ...]:
    """The hospitals that the settings hold out, sorted."""
    if data.leave_one_center_out is not None:
        return (_fold(hospitals(frame), data.leave_one_center_out),)
    if data.held_out_fraction is not None:
        return _drawn(frame, data.held_out_fraction)
    held, known = {hospital(center) for center in data.held_out_centers}, set(frame.loc[_single(frame), "center"])
    if absent := sorted(held - known):
        raise UserError(
            f"data.held_out_centers: no center {absent[0]!r} among the store's {len(known)} known centers "
            f"({listing(known)}); name one of these"
        )
    return tuple(sorted(held))


def _fold(names: Sequence[str], number: int) -> str:
    if number >= len(names):
        fits = f"0 to {len(names) - 1} would fit" if names else "none can be held out"
        raise UserError(f"data.leave_one_center_out is {number}, but the store has {len(names)} hospitals: {fits}")
    return names[number]


def _drawn(frame: pd.DataFrame, fraction: float) -> tuple[str, ...]:
    """A share of the hospitals, spread over those without lesions, with few and with many (above the median share)."""
    names = hospitals(frame)
    count = round(fraction * len(names))
    if not 0 < count < len(names):
        fits = f"{1 / len(names):.2f} to {1 - 1 / len(names):.2f} would fit" if len(names) > 1 else "it takes two or more"
        raise UserError(f"data.held_out_fraction is {fraction:g}, {count} of the store's {len(names)} hospitals: {fits}")
    prevalence = (lesions(frame) == "lesion").groupby(frame["center"]).mean()[names]
    some = [share for share in prevalence if share > 0]
    strata = {name: 0 if not share else 1 + (share > median(some)) for name, share in prevalence.items()}
    return tuple(sorted(spread(strata, "center:")[:count]))


def _hidden(frame: pd.DataFrame, held: Sequence[str], data: Data) -> pd.Series:
    """Why a case may hide a scan of a held-out hospital; "" where it may not, or where it was said to keep such cases."""
    reasons = pd.Series("", frame.index, dtype=object)
    if data.unknown == "exclude":
        reasons[frame["center_kind"] == UNKNOWN] = NO_CENTER
    pooled = frame.index[frame["center_kind"] == "pool"]
    if data.pools == "exclude":
        reasons[pooled] = POOL
    else:
        details = frame.loc[pooled, "metadata"].map(lambda text: json.loads(text).get("site detail", ""))
        naming = {text: any(may_contain(text, center) for center in held) for text in set(details)}
        reasons[pooled[details.map(naming).to_numpy(bool)]] = NAMES_HELD_OUT
    return reasons


def _leaks(split: pd.Series, patient: Mapping[str, str], data: Data) -> pd.Index:
    """Training cases of a suspected patient who is also held out or in the official test split."""
    apart = {patient[case]: case for case in split.index[split.isin(["held_out", "test"])]}
    leaks = pd.Index([case for case in split.index[split == "train"] if patient[case] in apart])
    if len(leaks) and data.clusters == "refuse":
        other = apart[patient[leaks[0]]]
        raise UserError(
            f"data.clusters is refuse, but {len(leaks)} training cases look like patients of the held-out or test cases "
            f"({leaks[0]} like {other}); set it to drop to train without them"
        )
    return leaks


def _validation(frame: pd.DataFrame, split: pd.Series, patient: Mapping[str, str], fraction: float) -> list[str]:
    """The cases of seen centers to keep out of training: of each center the first patients by hash, wherever scanned."""
    training, chosen = frame[split == "train"], set[str]()
    if fraction <= 0:
        return []
    for _, rows in training.groupby("center"):
        ordered = sorted(rows.index, key=lambda case: (_hash(patient[case]), case))
        share = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
        owners = [patient[case] for case in ordered]
        chosen |= set(owners[: _whole(owners, share)])
    return [case for case in training.index if patient[case] in chosen]


def _whole(owners: Sequence[str], share: int) -> int:
    """`share` moved to where it cuts no owner's run in two: up, or down where that would take all."""
    ends = [n for n in range(1, len(owners)) if owners[n] != owners[n - 1]]
    up = next((n for n in ends if n >= share), None)
    return 0 if not share or not ends else up if up is not None else ends[-1]


def _beyond_subset(frame: pd.DataFrame, split: pd.Series, subset: int | None) -> list[str]:
    """The training cases that a subset of this size does not have."""
    training = frame[split == "train"]
    if subset is None:
        return []
    if subset > len(training):
        raise UserError(
            f"data.subset is {subset}, but there are {len(training)} cases to train on: 1 to {len(training)} would fit"
        )
    return spread(lesions(training).to_dict(), "subset:")[subset:]


def _thawed(frame: pd.DataFrame, path: Path, data: Data) -> Splits:
    """The split that a file has frozen, for the cases of this store."""
    content = read_split(path)
    _agree(content["settings"], data, path)
    frozen = {case: split for split, cases in content["splits"].items() for case in cases}
    why = {case: reason for reason, cases in content["left_out"].items() for case in cases}
    absent = tuple(sorted(set(frozen) - set(frame.index)))
    if absent and data.absent == "refuse":
        raise UserError(
            f"split {path}: {len(absent)} of its {len(frozen)} cases are not in the store, such as {absent[0]}; "
            "set data.absent to drop to go on without them"
        )
    split = pd.Series([frozen.get(case, "") for case in frame.index], frame.index, dtype=object)
    reasons = pd.Series([why.get(case, NOT_FROZEN) for case in frame.index], frame.index, dtype=object).where(split == "", "")
    if len(leaks := split.index[(frame["official_split"] == "test") & split.isin(["train", "val_seen"])]):
        raise UserError(f"split {path}: trains on {len(leaks)} official test cases, such as {leaks[0]}; freeze it anew")
    return Splits(split, reasons, tuple(content["held_out"]), absent, content["digest"])


def _agree(frozen: Mapping[str, Any], data: Data, path: Path) -> None:
    """Raises UserError where a setting of the split was given that is not the frozen one."""
    for entry in fields(Data):
        given = getattr(data, entry.name)
        default = () if entry.default is MISSING else entry.default
        plain = list(given) if isinstance(given, tuple) else given
        if entry.name in FROZEN and given != default and plain != frozen[entry.name]:
            raise UserError(
                f"data.{entry.name} is {plain}, but {path} was frozen with {frozen[entry.name]}; "
                "leave it at its default, or give the same"
            )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
