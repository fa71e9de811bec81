from dataclasses import replace
from pathlib import Path

import pytest

from pants_dist.errors import UserError
from pants_dist.protocol import Analysis, keep_analysis, read_analysis, spoken


def test_every_choice_is_in_the_digest(tmp_path: Path) -> None:
    """An empty file is the default; each choice changes the digest, and the order of lines does not."""
    path = tmp_path / "analysis.yaml"
    path.write_text("")
    assert read_analysis(path) == read_analysis(None) == Analysis()
    others = [
        {"primary": "nsd/pancreas"}, {"tolerances_mm": {"pancreas": 3.0}}, {"lesion_voxels": 50}, {"specificity": 0.95},
        {"comparisons": (("a", "b"),)}, {"adjust": "bh"}, {"draws": 500}, {"seed": 1},
    ]  # fmt: skip
    digests = {Analysis().digest} | {replace(Analysis(), **other).digest for other in others}
    assert len(digests) == len(others) + 1
    path.write_text("seed: 3\nprimary: dsc/liver\ncomparisons: [[a, b]]\n")
    first = read_analysis(path)
    path.write_text("comparisons:\n  - [a, b]\nprimary: dsc/liver\nseed: 3\n")
    assert read_analysis(path).digest == first.digest and first.comparisons == (("a", "b"),)


BAD = [
    ("primry: dsc/liver", "no choice primry; did you mean 'primary'"),
    ("primary: liver", "primary is 'liver'; give dsc/ or nsd/"),
    ("primary: 3", "primary is 3"),
    ("specificity: 90", "specificity is 90; give a share"),
    ("lesion_voxels: true", "lesion_voxels is True"),
    ("comparisons: [a, b]", "give pairs of models"),
    ("adjust: none", "give holm or bh"),
    ("tolerances_mm: {liver: 0}", "give millimeters"),
    ("- a", "is no mapping"),
    ("a: [", "cannot be read"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_what_cannot_be_meant_is_refused(text: str, says: str, tmp_path: Path) -> None:
    """One line each: the file, the choice, its value, what to give."""
    (tmp_path / "analysis.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        read_analysis(tmp_path / "analysis.yaml")


def test_a_changed_analysis_shows(tmp_path: Path) -> None:
    """Other analyses that were reported in the folder are told with what differs, in every later report, too."""
    first, second = Analysis(), Analysis(seed=1, primary="nsd/pancreas")
    assert keep_analysis(tmp_path, first) == keep_analysis(tmp_path, first) == []
    for _ in range(2):
        assert keep_analysis(tmp_path, second) == [(first.digest, ["primary", "seed"])]
    assert keep_analysis(tmp_path, first) == [(second.digest, ["primary", "seed"])]
    third = replace(second, comparisons=(("a", "b"),))
    assert keep_analysis(tmp_path, third) == [
        (second.digest, ["comparisons"]), (first.digest, ["primary", "comparisons", "seed"])
    ]  # fmt: skip
    (tmp_path / "analysis.json").write_text("no json")
    assert keep_analysis(tmp_path, Analysis()) == []


def test_every_choice_in_words() -> None:
    said = dict(spoken(Analysis(comparisons=(("a", "b"), ("a", "c")))))
    assert said["comparisons"] == "a and b, a and c" and said["draws"] == "2,000" and "pancreas 5" in said["tolerances_mm"]
    assert dict(spoken(Analysis()))["comparisons"] == "every pair"
