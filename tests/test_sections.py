import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pants_dist.protocol import Analysis
from pants_dist.roc import delong_difference
from pants_dist.sections import declared, detection_pairs, primary_of, sections_of
from tests.scored import scored_rows

STRUCTURES = ("liver", "pancreas", "pancreatic_lesion")
QUICK = Analysis(draws=100)


def test_p_values_are_adjusted_over_the_declared_pairs_alone() -> None:
    """Two of three pairs declared, in any order of names: a family of two, as statsmodels adjusts it."""
    pairs = pd.DataFrame({"first": ["a", "a", "b"], "second": ["b", "c", "c"], "p": [0.01, 0.03, 0.04]})
    for adjust, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
        found = declared(pairs, Analysis(comparisons=(("b", "a"), ("b", "c")), adjust=adjust))
        assert found[["first", "second"]].to_numpy().tolist() == [["a", "b"], ["b", "c"]]
        np.testing.assert_allclose(found["p_adjusted"], multipletests([0.01, 0.04], method=theirs)[1])
    np.testing.assert_allclose(declared(pairs, QUICK)["p_adjusted"], multipletests(pairs["p"], method="holm")[1])


def test_sensitivities_are_compared_by_mcnemar() -> None:
    """Over the cases with a lesion, exact, as statsmodels has it; the AUC difference of equal scores is 0."""
    ours = scored_rows(4, 30).set_index("case")
    theirs = ours.assign(lesion_predicted=ours["lesion_predicted"] ^ (np.arange(120) % 3 == 0))
    pairs = pd.DataFrame({"first": ["a"], "second": ["b"]})
    (line,) = detection_pairs({"a": ours, "b": theirs}, pairs, QUICK).to_dict("records")
    positive = ours["lesion_present"]
    table = pd.crosstab(ours.loc[positive, "lesion_predicted"], theirs.loc[positive, "lesion_predicted"])
    assert line["p (McNemar)"] == pytest.approx(mcnemar(table.to_numpy(), exact=True).pvalue)
    assert line["only first finds"] == table.loc[True, False] and line["auc difference"] == 0
    assert "p (DeLong)" not in line  # some patients have two scans
    alone = [rows.assign(patient=rows.index, lesion_max_logit=rows["lesion_max_logit"] + shift) for rows, shift in (
        (ours, 0.0), (theirs, np.random.default_rng(1).normal(0, 1, 120)))]  # fmt: skip
    (line,) = detection_pairs(dict(zip("ab", alone, strict=True)), pairs, QUICK).to_dict("records")
    apart = delong_difference(ours["lesion_present"], *(rows["lesion_max_logit"] for rows in alone))
    assert line["p (DeLong)"] == apart.p and line["auc difference"] == pytest.approx(apart.value)


def test_the_endpoint_is_the_declared_one_if_it_is_there() -> None:
    rows = scored_rows(2, 10)
    assert primary_of(rows, STRUCTURES, Analysis(primary="nsd/pancreas")) == "nsd/pancreas"
    assert primary_of(rows, STRUCTURES, Analysis(primary="dsc/spleen")) == "dsc/liver"


def test_only_centers_that_are_known_speak_for_centers() -> None:
    """Pools and unknown centers are left out of gap and spread; by another column there is neither."""
    rows = scored_rows(5, 12)
    rows.loc[rows["center"] == "Hospital A", "center_kind"] = "pool"
    rows.loc[rows["center"] == "Hospital B", "center"] = "unknown"
    titles = [section.title for section in sections_of({"m": rows}, STRUCTURES, QUICK, "center", centers=True)]
    across, others = "What the centers say together", ["Lesion detection", "Subgroups and case mix"]
    assert titles == ["Every structure, every center", across, *others]
    across = sections_of({"m": rows}, STRUCTURES, QUICK, "center", centers=True)[1]
    spread = next(table for name, _, table in across.tables if name == "spread")
    assert set(spread["centers"]) == {"2 seen", "1 held-out"}
    by_sex = sections_of({"m": rows}, STRUCTURES, QUICK, "sex", centers=False)
    assert "What the centers say together" not in [section.title for section in by_sex]
