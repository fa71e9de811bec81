import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from pants_dist.report import center_table, print_table, verdict, write_report

STRUCTURES = ("liver", "pancreas", "pancreatic_lesion")


def rows(centers: int = 4, each: int = 6, held_out: int = 1) -> pd.DataFrame:
    """Rows as an evaluation writes them; every second case has a lesion, and every third prediction one."""
    rng, made = np.random.default_rng(0), []
    for number in range(centers * each):
        center, lesion = number % centers, number // centers % 2 == 0
        made.append({
            "case": f"PanTS_{number:08d}", "center": f"Center <{center}> & \"söhne\"", "center_kind": "single",
            "seen": center >= held_out, "split": "val_seen" if center >= held_out else "held_out", "n_voxels": 1000,
            "lesion_present": lesion, "lesion_predicted": number % 3 == 0,
            **{f"dsc/{name}": rng.uniform(0.6, 0.9) for name in STRUCTURES},
            "nsd/liver": 0.5, "nsd/pancreas": 0.5, "nsd/pancreatic_lesion": 0.5,
        })  # fmt: skip
        if not lesion:
            made[-1]["dsc/pancreatic_lesion"] = made[-1]["nsd/pancreatic_lesion"] = np.nan
    return pd.DataFrame(made)


def test_means_and_intervals_are_students_t() -> None:
    """A center's mean and interval equal scipy's, over the cases that could be scored; below five cases there is none."""
    table = rows()
    first = center_table(table, STRUCTURES).set_index("center").loc['Center <1> & "söhne"']
    values = table.loc[table["center"] == 'Center <1> & "söhne"', "dsc/liver"]
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert first["dsc/liver"] == pytest.approx(values.mean())
    assert (first["dsc/liver/low"], first["dsc/liver/high"]) == pytest.approx((low, high))
    assert first["dsc/pancreatic_lesion"] == first["dsc/pancreatic_lesion"] and np.isnan(first["dsc/pancreatic_lesion/low"])


def test_sensitivity_and_specificity_count_patients() -> None:
    """Of the patients with a lesion, those with any predicted voxel; of those without, those with none."""
    by_hand = pd.DataFrame({
        "case": list("abcdef"), "center": "A", "center_kind": "single", "seen": True, "split": "val_seen",
        "lesion_present": [True, True, True, False, False, None], "lesion_predicted": [True, True, False, False, True, True],
        "dsc/liver": 0.5,
    })  # fmt: skip
    row = center_table(by_hand, ["liver"]).iloc[0]
    assert (row["n"], row["positives"], row["sensitivity/n"], row["specificity/n"]) == (6, 3, 3, 2)
    assert (row["sensitivity"], row["specificity"]) == (pytest.approx(2 / 3), 0.5)


def test_there_is_no_verdict_from_few_centers() -> None:
    """Four seen and one held-out center allow none, in so many words; five and five do."""
    assert "No verdict on a gap: 3 seen and 1 held-out" in verdict(center_table(rows(), STRUCTURES))
    assert "No verdict" not in verdict(center_table(rows(10, 2, held_out=5), STRUCTURES))
    assert "Only one kind" in verdict(center_table(rows(held_out=0), STRUCTURES))


def test_the_table_fits_a_terminal() -> None:
    """Every center and figure stands in 80 columns, with the sentence on the gap under it."""
    text = io.StringIO()
    print_table(center_table(rows(), STRUCTURES), STRUCTURES, Console(file=text, width=80))
    printed = text.getvalue()
    assert all(f"<{number}>" in printed for number in range(4)) and "held-out" in printed and "0.74-0.88" in printed
    assert "No verdict on a gap" in " ".join(printed.split()) and "…" not in printed


def test_a_terminal_shows_what_it_has_room_for() -> None:
    """Of many structures with long names as many as fit; names of centers and numbers are whole at any width."""
    names = ("pancreas", "superior_mesenteric_artery", "common_bile_duct", "liver", "spleen", "stomach", "colon")
    table = rows().assign(**{f"dsc/{name}": 0.81 for name in names})
    for width, shown in ((60, 1), (80, 2), (120, 6)):
        text = io.StringIO()
        print_table(center_table(table, names), names, Console(file=text, width=width))
        printed = text.getvalue()
        assert "…" not in printed and printed.count("0.81-0.81") == 4 * shown
        said = " ".join(printed.split())
        assert f"{7 - shown} more structure{'s' * (shown < 6)}: in the report" in said
        assert "Center is confounded with source dataset" in said


def test_pools_give_no_verdict() -> None:
    """Six seen centers of which two are pools are four."""
    table = center_table(rows(12, 2, held_out=6), STRUCTURES)
    table.loc[table["seen"].astype(bool).idxmax() + np.arange(2), "center_kind"] = "pool"
    assert "No verdict on a gap: 4 seen and 6 held-out" in verdict(table)


def test_groups_that_are_no_centers_are_no_pools() -> None:
    """By sex every group counts in the mean, though its first case is from a pool."""
    table = rows(4, 6).assign(**{"center/unit": "X"}, center=["F", "M"] * 12, seen=True, center_kind=["pool", "single"] * 12)
    text = io.StringIO()
    print_table(center_table(table, STRUCTURES), STRUCTURES, Console(file=text, width=80), "sex")
    assert "mean of 2" in text.getvalue()


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    """report.html names nothing outside itself, escapes what comes from data, and carries figures and pictures."""
    picture = tmp_path / "case.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    facts = {"Store": "<script>alert(1)</script>"}
    page = write_report(tmp_path, rows(), STRUCTURES, facts, [("case & title", picture)]).read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links) and "url(http" not in page
    assert "<script>alert" not in page and "Center &lt;1&gt; &amp;" in page
    assert page.count("<svg") == 3 and page.count("data:image/png") == 1
    assert "Memorisation" not in page


def test_scores_on_training_cases_are_called_memorisation(tmp_path: Path) -> None:
    """A report of the training split says what it is."""
    assert "Memorisation" in write_report(tmp_path, rows().assign(split="train"), STRUCTURES, {}, []).read_text()
