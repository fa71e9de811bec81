import json
from pathlib import Path

from sources import REAL_CT, SHARED, need

from conversion.run import convert
from pants_dist.cases import official_split, read_metadata
from pants_dist.duplicates import FINGERPRINT, Clusters, alike, clusters, fingerprint, fingerprint_of, suspects
from pants_dist.info import describe
from pants_dist.store import open_store


def test_equal_keys_are_groups_and_splits_are_crossed() -> None:
    """Groups have two cases or more, None is in none, and only train together with test is a crossing."""
    keys = {"d": "2", "a": "1", "b": "1", "c": "2", "e": None, "f": None, "g": "3"}
    splits = {"a": "train", "b": "test", "c": "train", "d": "", "e": "train", "f": "test", "g": "test"}
    found = clusters(keys, splits)
    assert found.groups == (("a", "b"), ("c", "d")) and found.cases == 4 and found.crossing == 1


def test_unknown_sex_or_age_makes_no_strict_fingerprint() -> None:
    """With `known`, NA in sex or in age leaves a scan out; NA elsewhere does not."""
    rows = [["s", "z", "NA", "NA", "M", "50"], ["s", "z", "1", "h", "NA", "50"], ["s", "z", "1", "h", "F", ""]]
    tables = [dict(zip(FINGERPRINT, row, strict=True)) for row in rows]
    assert fingerprint(tables[1]) == "s|z|1|h|NA|50"
    assert [fingerprint(table, known=True) is None for table in tables] == [False, True, True]


def test_the_released_metadata_have_616_suspected_clusters(shared_data: Path) -> None:
    """616 groups of 1,315 scans, 62 crossing; with sex and age known 430 of 921, 50 crossing: from a store's rows too."""
    table = read_metadata(shared_data / "pants_released" / "metadata.xlsx")
    splits = {case: official_split(case) for case in table.index}
    rows = {case: {"metadata": json.dumps(row)} for case, row in table.to_dict("index").items()}
    for known, expected in ((False, (616, 1315, 62)), (True, (430, 921, 50))):
        found = clusters({case: fingerprint_of(row, known) for case, row in rows.items()}, splits)
        assert (len(found.groups), found.cases, found.crossing) == expected


def test_histograms_cut_a_group() -> None:
    """a is near b and b near c, so the three are one; d is far; a group of one is none."""
    histograms = {"a": [0.5, 0.5], "b": [0.58, 0.42], "c": [0.66, 0.34], "d": [0.9, 0.1], "x": [1, 0], "y": [0, 1]}
    found = alike(Clusters((("a", "b", "c", "d"), ("x", "y")), 0), histograms, dict.fromkeys("abd", "train") | {"c": "test"})
    assert found == Clusters((("a", "b", "c"),), 1)


def test_one_scan_in_two_datasets_is_found(tmp_path: Path) -> None:
    """The real scan as PanTS and as TotalSegmentator lay it out: other files, other masks, equal voxels."""
    convert([need(REAL_CT), need(SHARED / "data" / "real_ct_totalsegmentator")], tmp_path / "store", workers=1)
    store = open_store(tmp_path / "store")
    assert suspects(store.table.to_pylist())["equal voxels"] == Clusters((("PanTS_00000001", "s0011"),), 0)
    assert describe(store)["suspected_duplicates"]["equal voxels"]["groups"] == [["PanTS_00000001", "s0011"]]
