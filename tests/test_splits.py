import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from manifests import cases_of, frame_of, row_of

from pants_dist.cases import center_of, may_contain, read_metadata
from pants_dist.duplicates import patients
from pants_dist.errors import UserError
from pants_dist.settings import Data
from pants_dist.splits import NAMES_HELD_OUT, NO_CENTER, POOL, SUSPECTED, Splits, hospitals, in_turn, lesions, split_of, spread

POOL_OF_TWO = ("2 Sites", "Hospital B, Hospital Z")


def split(frame: pd.DataFrame, **settings: Any) -> Splits:
    return split_of(frame, Data(store="", **settings))


def cases(splits: Splits, name: str) -> set[str]:
    return set(splits.by_case.index[splits.by_case == name])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Hospitals A to F of 20 cases (B 4) with 0, 2, 4, 8, 12, 16 lesions, two pools, unknown ones, four official test cases."""
    parts = [
        cases_of("1 Site", f"Hospital {letter}", count, 100 * (n + 1), found)
        for n, (letter, count, found) in enumerate(
            [("A", 20, 0), ("B", 4, 2), ("C", 20, 4), ("D", 20, 8), ("E", 20, 12), ("F", 20, 16)]
        )
    ]
    pools = [cases_of(*POOL_OF_TWO, 5, 1000), cases_of("9 Sites", "", 7, 1100)]
    return frame_of(
        *parts, *pools, cases_of("NA", "NA", 3, 1200), cases_of("1 Site", "The Cancer Imaging Archive", 2, 1300),
        cases_of("1 Site", "Hospital B", 1, 9001), cases_of("1 Site", "Hospital C", 3, 9101),
    )  # fmt: skip


def test_without_held_out_centers_the_split_is_the_official_one(frame: pd.DataFrame) -> None:
    """Every case to 9000 is train or val_seen, pools and unknown ones too; from 9001 on test; nothing is left out."""
    splits = split(frame)
    assert cases(splits, "test") == {case for case in frame.index if case >= "PanTS_00009001"}
    assert cases(splits, "train") | cases(splits, "val_seen") == {case for case in frame.index if case < "PanTS_00009001"}
    assert (splits.held_out, splits.left_out()) == ((), {})
    assert splits.counts() == {"train": 97, "val_seen": 24, "test": 4}


def test_a_share_of_every_seen_center_is_kept_for_validation(frame: pd.DataFrame) -> None:
    """A fifth of each center's cases, at least one, whichever it is; none with a share of 0."""
    splits = split(frame)
    counts = frame["center"][splits.by_case == "val_seen"].value_counts()
    expected = {f"Hospital {letter}": 4 for letter in "ACDEF"} | {"Hospital B": 1, "unknown": 1}
    assert counts.to_dict() == expected | {"2 Sites (Hospital B ...)": 1, "9 Sites": 1}
    assert split(frame, val_fraction=0.0).counts() == {"train": 121, "test": 4}


def test_a_held_out_center_takes_pools_and_unknown_ones_with_it(frame: pd.DataFrame) -> None:
    """Its official test case stays in test; what may hide its scans is left out and counted, and no center is on two sides."""
    splits = split(frame, held_out_centers=("Hospital B",))
    assert cases(splits, "held_out") == {f"PanTS_{number:08d}" for number in range(200, 204)}
    assert "PanTS_00009001" in cases(splits, "test")
    assert splits.left_out() == {POOL: 12, NO_CENTER: 5}
    assert set(splits.by_case[splits.reasons != ""]) == {""} and set(splits.reasons[splits.by_case != ""]) == {""}
    assert splits.in_words().endswith("held_out 4, test 4, left out as pool of centers 12, left out as unknown center 5")


def test_kept_pools_still_never_name_a_held_out_center(frame: pd.DataFrame) -> None:
    """With pools and unknown ones kept, only the pool with the held-out hospital's name is left out."""
    assert split(frame, held_out_centers=("Hospital B",), pools="keep").left_out() == {NAMES_HELD_OUT: 5, NO_CENTER: 5}
    kept = split(frame, held_out_centers=("Hospital B",), pools="keep", unknown="keep")
    assert kept.left_out() == {NAMES_HELD_OUT: 5}
    assert split(frame, held_out_centers=("Hospital C",), pools="keep", unknown="keep").left_out() == {}


NAMED = [
    ("Memorial Sloan-Kettering, Mayo Clinic", "Memorial Sloan Kettering Cancer Center", True),
    ("M.D. Anderson Cancer Center; Yale", "University of Texas MD Anderson Cancer Center", True),
    ("Mayo Clinic, Yale", "Mayo Clinic Arizona", True),
    ("Mayo Clinic Rochester; Yale", "Mayo Clinic Arizona", False),
    ("Lahey, Barretos Cancer Hospital", "Barretos Cancer Hospital, Barretos, São Paulo", True),
    ("University Hospital Basel (10 Sites: A; B; C; D; E; F; G; H; I; J)", "University Hospital Basel", True),
    ("IRCAD Institute Strasbourg, Yale", "IRCAD Hôpitaux Universitaires", True),
    (
        "Yale, Cancer Center West China Hospital, Sichuan University",
        "Cancer Center West China Hospital, Sichuan University",
        True,
    ),
    ("University of Chicago; Yale", "University of Minnesota Health", False),
    ("", "University of Minnesota Health", False),
]


@pytest.mark.parametrize(("detail", "center", "expected"), NAMED)
def test_a_pool_names_a_hospital_in_any_spelling(detail: str, center: str, expected: bool) -> None:
    """Aliases, names with commas in them, and shorter forms of a name count; another hospital of like name does not."""
    assert may_contain(detail, center) is expected


def test_spellings_and_institutes_of_one_hospital_move_together() -> None:
    """M.D. Anderson under two names and Basel's institutes A to J are one hospital each; TCIA is none."""
    spelt = [cases_of("1 Site", name, 2, number) for name, number in (("M.D. Anderson", 10), ("MD Anderson Cancer Center", 20))]
    basel = [
        cases_of(letter, "University Hospital Basel (10 Sites: A; ...)", 1, 30 + n) for n, letter in enumerate("ABCDEFGHIJ")
    ]
    table = frame_of(*spelt, *basel, cases_of("1 Site", "The Cancer Imaging Archive", 2, 50), cases_of("1 Site", "Else", 3, 60))
    held = split(table, held_out_centers=("M.D. Anderson", "University Hospital Basel"))
    assert held.held_out == ("University Hospital Basel", "University of Texas MD Anderson Cancer Center")
    assert (held.counts()["held_out"], held.left_out()) == (14, {NO_CENTER: 2})


def test_every_fold_holds_out_one_hospital(frame: pd.DataFrame) -> None:
    """The folds of leave-one-center-out are the hospitals by name, each once; the next number is refused."""
    folds = [split(frame, leave_one_center_out=number) for number in range(6)]
    assert [fold.held_out for fold in folds] == [(f"Hospital {letter}",) for letter in "ABCDEF"]
    assert sum(fold.counts()["held_out"] for fold in folds) == 104
    with pytest.raises(UserError, match=r"leave_one_center_out is 6, but the store has 6 hospitals: 0 to 5 would fit"):
        split(frame, leave_one_center_out=6)


def test_a_hospital_of_official_test_cases_alone_is_no_fold() -> None:
    """Held out, it would have no case to score."""
    table = frame_of(cases_of("1 Site", "A", 2, 1), cases_of("1 Site", "B", 2, 9001))
    assert hospitals(table) == ["A"]


def test_a_share_of_hospitals_is_spread_over_tumor_prevalence(frame: pd.DataFrame) -> None:
    """Of 6 hospitals A has no lesions, B to D have up to the median share and E, F more: a half has one of E and F."""
    half = split(frame, held_out_fraction=0.5).held_out
    assert len(half) == 3 and len(set(half) & {"Hospital E", "Hospital F"}) == 1
    assert len(set(half) & {f"Hospital {letter}" for letter in "BCD"}) in (1, 2)
    sixths = [set(split(frame, held_out_fraction=n / 6).held_out) for n in range(1, 6)]
    assert [len(names) for names in sixths] == [1, 2, 3, 4, 5]
    assert all(few < many for few, many in pairwise(sixths))


@pytest.mark.parametrize("fraction", [0.05, 0.95])
def test_a_share_of_no_or_all_hospitals_is_refused(frame: pd.DataFrame, fraction: float) -> None:
    """With the shares that would fit."""
    with pytest.raises(UserError, match=rf"held_out_fraction is {fraction}.*6 hospitals: 0\.17 to 0\.83 would fit"):
        split(frame, held_out_fraction=fraction)


def test_centers_that_cannot_be_held_out_are_refused(frame: pd.DataFrame) -> None:
    """A name that is no center's, and all of them at once."""
    with pytest.raises(UserError, match=r"no center 'Nowhere' among the store's 6 known centers \(Hospital A, .*name one"):
        split(frame, held_out_centers=("Hospital A", "Nowhere"))
    with pytest.raises(UserError, match="leaves no cases to train on among the store's 125; hold out fewer of the 6"):
        split(frame, held_out_centers=tuple(hospitals(frame)))


def suspects() -> pd.DataFrame:
    """Patient x: two train scans of A and an official test scan of A; patient y: three train scans of B among 12."""
    return frame_of(
        cases_of("1 Site", "A", 10, 1), cases_of("1 Site", "A", 2, 11, patient="x"),
        cases_of("1 Site", "A", 1, 9001, patient="x"),
        cases_of("1 Site", "B", 9, 21), cases_of("1 Site", "B", 3, 31, patient="y"),
    )  # fmt: skip


def test_a_patient_of_the_official_test_is_refused_or_dropped_from_training() -> None:
    """Refused with the number and an example; dropped when told, and counted."""
    with pytest.raises(UserError, match=r"2 training cases .*PanTS_00000011 like PanTS_00009001\); set it to drop"):
        split(suspects())
    dropped = split(suspects(), clusters="drop")
    assert dropped.left_out() == {SUSPECTED: 2} and dropped.by_case["PanTS_00000011"] == ""


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.5, 0.8, 0.95])
def test_a_patient_s_scans_are_validated_together(fraction: float) -> None:
    """Whatever the share, patient y is wholly in train or wholly in val_seen, and both have cases of B."""
    splits = split(suspects(), clusters="drop", val_fraction=fraction).by_case
    assert splits["PanTS_00000031"] == splits["PanTS_00000032"] == splits["PanTS_00000033"]
    assert set(splits["PanTS_00000021":"PanTS_00000033"]) == {"train", "val_seen"}


def test_a_center_of_one_patient_has_no_validation() -> None:
    """Two scans that may be one patient's cannot stand on both sides."""
    assert split(frame_of(cases_of("1 Site", "A", 2, 1, patient="x"))).counts() == {"train": 2}


def test_one_scan_under_two_hospitals_stays_on_one_side() -> None:
    """Equal voxels: held out it takes its double out of training; seen it is validated with its double."""
    rows = [*cases_of("1 Site", "A", 6, 1), *cases_of("1 Site", "B", 6, 11)]
    rows[6]["image_crc32"] = rows[0]["image_crc32"]
    held = split(frame_of(rows), held_out_centers=("A",), clusters="drop")
    assert held.left_out() == {SUSPECTED: 1} and held.by_case["PanTS_00000011"] == ""
    for fraction in (0.2, 0.4, 0.6, 0.8):
        seen = split(frame_of(rows), val_fraction=fraction).by_case
        assert seen["PanTS_00000001"] == seen["PanTS_00000011"]


def test_patients_are_chained_and_need_a_sign() -> None:
    """a and b have equal metadata, b and c equal voxels; d and e, without PanTS's metadata, sex or age, are two."""
    one = cases_of("1 Site", "A", 2, 1, patient="x")
    rows = [*one, *cases_of("1 Site", "A", 4, 11)]
    rows[2]["image_crc32"] = rows[1]["image_crc32"]
    rows[3] |= {"metadata": "{}", "sex": None}
    rows[4] |= {"metadata": "{}", "sex": None}
    rows[5] |= {"metadata": "{}", "sex": "F", "age": 50.0}
    first = patients([*rows, rows[5] | {"case": "other", "image_crc32": -1}])
    assert [case for case, owner in first.items() if owner == "PanTS_00000001"] == [row["case"] for row in rows[:3]]
    assert first["PanTS_00000012"] != first["PanTS_00000013"] and first["other"] == "PanTS_00000014"


def test_subsets_are_nested_and_stratified(frame: pd.DataFrame) -> None:
    """Each subset contains the smaller ones and has its share of lesions within one case; val_seen is the same for all."""
    whole = split(frame)
    lesion = lesions(frame) == "lesion"
    share = lesion[whole.by_case == "train"].mean()
    subsets = [split(frame, subset=size) for size in (1, 7, 30, 96, 97)]
    drawn = [cases(splits, "train") for splits in subsets]
    assert [len(found) for found in drawn] == [1, 7, 30, 96, 97] and drawn[-1] == cases(whole, "train")
    assert all(few < many for few, many in pairwise(drawn))
    assert all(abs(lesion[list(found)].sum() - share * len(found)) <= 1 for found in drawn)
    assert all(cases(splits, "val_seen") == cases(whole, "val_seen") for splits in subsets)
    with pytest.raises(UserError, match=r"data.subset is 98, but there are 97 cases to train on: 1 to 97 would fit"):
        split(frame, subset=98)


def test_every_beginning_of_a_spread_has_each_stratum_s_share() -> None:
    """Strata of 1, 10, 100 and 37 names, at every length; another salt, another order.

    Each of the k strata is cut at a place t to half a name of t x its size, so a beginning of N names of M has of a
    stratum with share s at most 0.5 + s k / 2 names more or less than N s.
    """
    strata = {f"{stratum} {n}": stratum for stratum, size in {"a": 1, "b": 10, "c": 100, "d": 37}.items() for n in range(size)}
    ordered = spread(strata, "x")
    assert sorted(ordered) == sorted(strata)
    sizes, found = Counter(strata.values()), Counter[str]()
    for length, name in enumerate(ordered, 1):
        found[strata[name]] += 1
        for share, stratum in ((size / len(strata), stratum) for stratum, size in sizes.items()):
            assert abs(found[stratum] - length * share) <= 0.5 + share * len(sizes) / 2
    assert spread(strata, "y") != ordered


def test_adding_cases_to_a_center_moves_nobody_elsewhere(frame: pd.DataFrame) -> None:
    """Other centers' splits stay; in its own, cases move one way at most; the order of rows decides nothing."""
    before = split(frame).by_case
    more = pd.concat([frame, frame_of(cases_of("1 Site", "Hospital A", 15, 2000))])
    after = split(more).by_case[frame.index]
    elsewhere = frame["center"] != "Hospital A"
    pd.testing.assert_series_equal(after[elsewhere], before[elsewhere])
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert len(moved) <= 1
    shuffled = split(frame.sample(frac=1, random_state=0)).by_case
    pd.testing.assert_series_equal(shuffled[frame.index], before)


def test_lesions_not_annotated_are_unknown() -> None:
    """An empty mask is "none" only where there is a mask."""
    row = {"site": "1 Site", "site detail": "A", "sex": "F", "shape": "", "spacing": "", "age": ""}
    table = frame_of([row_of(f"c{n}", n, row, lesion) for n, lesion in enumerate((True, False, None))])
    assert lesions(table).tolist() == ["lesion", "none", "unknown"]


def test_a_sample_has_every_center_with_and_without_lesions() -> None:
    """Of three hospitals, the first cases are one of each, of both kinds; then the other kind, as far as there is one."""
    table = frame_of(cases_of("1 Site", "A", 4, 1, 1), cases_of("1 Site", "B", 4, 11, 2), cases_of("1 Site", "C", 3, 21, 0))
    everyone = pd.Series("val_seen", table.index)
    order = in_turn(table, everyone, "val_seen")
    assert sorted(order) == sorted(table.index) and in_turn(table, everyone, "held_out") == []
    assert [table.loc[case, "center"] for case in order] == list("ABCABCABCAB")
    lesion = (lesions(table) == "lesion")[order].tolist()
    assert lesion == [True, False, False, False, True, False, False, False, False, False, True]


def real_frame(shared_data: Path) -> pd.DataFrame:
    table = read_metadata(shared_data / "pants_released" / "metadata.xlsx").to_dict("index")
    rows = [row_of(str(case), n, dict(row), row["tumor?"] == "1") for n, (case, row) in enumerate(table.items())]  # type: ignore
    return frame_of(rows)


@pytest.fixture(scope="module")
def released(shared_data: Path) -> pd.DataFrame:
    return real_frame(shared_data)


def test_the_released_metadata_have_18_hospitals(released: pd.DataFrame) -> None:
    """18 hospitals with 5,311 scans, 9,000 train and 901 test ids, of which 73 train scans look like test patients."""
    single = released[released["center_kind"] == "single"]
    assert (len(hospitals(released)), len(single), single["center"].nunique()) == (18, 5311, 18)
    with pytest.raises(UserError, match="73 training cases look like"):
        split(released)
    splits = split(released, clusters="drop")
    counts = splits.counts()
    assert (counts["train"] + counts["val_seen"], counts["test"], splits.left_out()) == (8927, 901, {SUSPECTED: 73})


def test_held_out_hospitals_of_the_released_metadata(released: pd.DataFrame) -> None:
    """Minnesota leaves with 560 scans, 594 unknown ones and 3,745 of pools; kept, the pool of 346 that names it goes still."""
    held = {"held_out_centers": ("University of Minnesota Health",), "clusters": "drop"}
    splits = split(released, **held)
    assert splits.counts()["held_out"] == 560 and splits.left_out() == {POOL: 3745, NO_CENTER: 594}
    kept = split(released, **held, pools="keep", unknown="keep").left_out()
    assert kept[NAMES_HELD_OUT] == 346


def test_a_catalog_of_36390_cases_is_split_as_promised() -> None:
    """Synthetic metadata of PanTS's size: no hospital and no patient on two sides, no test id in training, exact subset."""
    rng = np.random.default_rng(0)
    sites = [("1 Site", f"Hospital {n}") for n in range(40)] + [(f"{n} Sites", f"Hospital {n}; Hospital 50") for n in range(9)]
    weights = rng.dirichlet(np.ones(len(sites)))
    rows = []
    for n, pick in enumerate(rng.choice(len(sites), 36_390, p=weights)):
        site, detail = sites[pick]
        cell = {"shape": str(rng.integers(400)), "spacing": "1", "site": site, "site detail": detail}
        cell |= {"sex": "FM"[n % 2], "age": str(rng.integers(90))}
        rows.append(row_of(f"PanTS_{n + 1:08d}", n, cell, bool(rng.random() < 0.1)))
    for row in rows[10_000:]:
        row["official_split"] = "train"  # as if the test ids were 901 of 36,390
    table = frame_of(rows)
    splits = split(table, held_out_fraction=0.25, pools="keep", clusters="drop", subset=2238)
    by_case = splits.by_case
    assert len(splits.held_out) == 10 and splits.counts()["train"] == 2238
    center, seen = table["center"], by_case.isin(["train", "val_seen"])
    assert not set(center[seen]) & set(splits.held_out)
    patient = table["metadata"].map(lambda text: tuple(json.loads(text).values()))
    assert not set(patient[by_case == "train"]) & set(patient[by_case != "train"][by_case[by_case != "train"] != ""])
    assert set(by_case[table["official_split"] == "test"]) == {"test"}
    named = table["metadata"].map(lambda text: center_of("1 Site", json.loads(text)["site detail"].split(";")[0])[0])
    assert not set(named[seen]) & set(splits.held_out)
