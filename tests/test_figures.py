"""What the report's figures show, read from the drawn figure itself: intervals, n, names of which none lies on another."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from pants_dist.curves import box_plot, calibration_plot, roc_plot, significance_plot
from pants_dist.figures import HELD_OUT, SEEN, dot_plot, funnel_plot, gap_plot, inlined, of_centers, spoken
from pants_dist.report import center_table
from tests.scored import LESION, scored_rows

STRUCTURES = ["liver", "pancreas", LESION]
ROWS = scored_rows(24 // 3, 20)


def texts(figure: Figure) -> list[str]:
    """All words on a figure, drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]


def test_dots_intervals_and_n_of_every_center() -> None:
    """From the best mean down: the interval is as long as in the table, n counts scored cases, colors tell seen from not."""
    column, centers = f"dsc/{LESION}", center_table(ROWS, STRUCTURES)
    figure = dot_plot(ROWS, centers, column)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ordered = centers.sort_values(column, ascending=False).set_index("center")
    assert names == ordered.index.tolist()
    scored = ROWS.groupby("center")[column].count()
    assert [text.get_text() for text in figure.axes[0].texts] == ["n", *(str(scored[name]) for name in names)]
    solid = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    spans = {line.get_ydata()[0]: line for line in solid}
    for place, name in enumerate(names):
        row = ordered.loc[name]
        if row[f"{column}/low"] == row[f"{column}/low"]:
            assert spans[place].get_xdata() == pytest.approx([row[f"{column}/low"], row[f"{column}/high"]])
            assert spans[place].get_color() == (SEEN if row["seen"] else HELD_OUT)


def test_a_funnel_names_who_differs_by_more_than_chance() -> None:
    """A poor large center is named, a small one of the same mean is not; names lie on no other name and inside the axes."""
    rng, parts = np.random.default_rng(0), []
    for number in range(12):
        n, low = (60, 0.3) if number < 4 else (60, 0.0)
        n, low = (2, 0.3) if number == 11 else (n, low)
        values = rng.normal(0.8 - low, 0.25, n).clip(0, 1)
        parts.append(pd.DataFrame({"center": f"A hospital called {number}", "dsc/liver": values}))
    rows = pd.concat(parts, ignore_index=True).assign(seen=None, center_kind="")
    rows["case"] = range(len(rows))
    figure = funnel_plot(rows, center_table(rows, ["liver"]), "dsc/liver")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    names = figure.axes[0].texts
    assert {f"A hospital called {n}" for n in range(4)} <= {text.get_text() for text in names}
    assert "A hospital called 11" not in {text.get_text() for text in names}
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in names]  # without its line to the dot
    room = figure.axes[0].get_window_extent()
    assert all(box.x0 >= room.x0 - 2 and box.x1 <= room.x1 + 2 for box in boxes)
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_the_gap_is_of_hospitals() -> None:
    """The number beside a structure is that of the table of the gap: pools do not count."""
    rows = ROWS.assign(center_kind=ROWS["center"].map(lambda name: "pool" if name == "Hospital A" else "single"))
    means = rows[rows["center"] != "Hospital A"].groupby(["seen", "center"])["dsc/pancreas"].mean()
    expected = f"{100 * (means[True].mean() - means[False].mean()):+.1f}".replace("-", "−")  # noqa: RUF001
    assert expected in texts(gap_plot(center_table(rows, STRUCTURES), ["pancreas"]))


def test_figures_are_of_the_endpoint_and_in_the_pages_color() -> None:
    """Titles speak of the primary score; letters on a page have the color of its text."""
    centers = center_table(ROWS, STRUCTURES)
    pictures = of_centers(ROWS, centers, STRUCTURES, "center", "nsd/pancreas")
    assert pictures[0].title == "Surface Dice of pancreas by center" and spoken(f"dsc/{LESION}") == "Dice of pancreatic lesion"
    assert of_centers(ROWS, centers, STRUCTURES)[0].title == "Dice of liver by center"
    assert "currentColor" in inlined(pictures[0]) and "#1c2128" not in inlined(pictures[0])


def test_curves_of_degenerate_rows() -> None:
    """No finite logit, groups of one case, one model that wins: each has a figure, and nothing is made up."""
    truth = np.array([1.0, 0.0, np.nan])
    assert texts(calibration_plot(truth, np.array([np.inf, -np.inf, 0.0]), "said"))[0] == "said"
    assert len(roc_plot(truth, {"a": truth}, {"b": truth}).axes[0].lines) == 3
    assert texts(box_plot(pd.Series([0.5, None, 0.7]), ["A", "A", "B"], "Dice"))[:3] == ["n", "1", "1"]
    table = pd.DataFrame({"first": ["a"], "second": ["b"], "difference": [0.1], "p_adjusted": [0.04]})
    said = texts(significance_plot(table, ["a", "b"], "Dice"))
    assert "+10.0\np = 0.040" in said and "−10.0\np = 0.040" in said  # noqa: RUF001
