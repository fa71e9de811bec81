"""Centers on the page: which metrics there are, how many cases stand behind each, and what figures show of them."""

import numpy as np
import pandas as pd
import pytest
from watched import rows_of

from pants_dist.dashboard import centerplots, metrics
from pants_dist.report import center_table
from pants_dist.stats import t_interval

STRUCTURES = ["liver", "pancreas"]


@pytest.fixture(scope="module")
def cases() -> pd.DataFrame:
    table = pd.DataFrame(rows_of())
    table.loc[table["case"] == "PanTS_00000001", "dsc/liver"] = np.nan  # of Center 0
    return table.assign(dsc=table[["dsc/liver", "dsc/pancreas"]].mean(axis=1))


@pytest.fixture(scope="module")
def centers(cases: pd.DataFrame) -> pd.DataFrame:
    return metrics.with_more(cases, center_table(cases, STRUCTURES), STRUCTURES)


def test_every_metric_can_be_chosen(centers: pd.DataFrame) -> None:
    """Dice of each structure and the mean, HD95, sensitivity and specificity; each has an interval, grouped by kind."""
    found = metrics.metrics_of(centers)
    assert found == ["dsc", "sensitivity", "specificity", "dsc/liver", "dsc/pancreas", "hd95_mm/liver", "hd95_mm/pancreas"]
    assert all(f"{name}/{end}" in centers for name in found for end in ("low", "high"))
    groups = {group["group"]: len(group["items"]) for group in metrics.choices(centers)}
    assert groups == {"Dice": 3, "Lesions found": 2, "HD95 in mm": 2}


def test_means_and_counts_are_those_of_the_cases(cases: pd.DataFrame, centers: pd.DataFrame) -> None:
    """A center's value is the mean of its cases that have one, and n counts these alone."""
    for metric in metrics.metrics_of(centers):
        values = metrics.cases_of(cases, metric)
        counts = metrics.counts_of(cases, centers, metric)
        for n, center in zip(counts, centers.to_dict("records"), strict=True):
            own = values[cases["center"] == center["center"]].dropna()
            assert n == len(own) and center[metric] == pytest.approx(own.mean())
    liver = dict(zip(centers["center"], metrics.counts_of(cases, centers, "dsc/liver"), strict=True))
    assert liver["Center 0"] == 5 and liver["Center 1"] == 6


@pytest.mark.parametrize("metric", ["dsc", "dsc/liver", "hd95_mm/liver", "sensitivity"])
def test_dots_bars_and_heat_map_are_aligned(cases: pd.DataFrame, centers: pd.DataFrame, metric: str) -> None:
    """From the best center to the worst, the lowest HD95 being the best; all three parts have the same center at one x."""
    figure = centerplots.centers_figure(cases, centers, STRUCTURES, metric, metric, dark=False)
    bars, heat = (next(trace for trace in figure.data if trace.type == kind) for kind in ("bar", "heatmap"))
    scattered = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "markers"]
    dots = {x: (name, y) for t in scattered for x, y, name in zip(t.x, t.y, t.customdata, strict=True)}
    order = [dots[x][0] for x in sorted(dots)]
    values = [dots[x][1] for x in sorted(dots)]
    assert values == sorted(values, reverse=not metric.startswith("hd95"))
    assert list(bars.x) == list(heat.x) == sorted(dots) and list(bars.customdata) == list(heat.customdata[0]) == order
    assert figure.layout.xaxis.matches == figure.layout.xaxis2.matches == "x3"
    by_name = centers.set_index("center")
    for x, name in enumerate(order):
        assert [heat.z[row][x] for row in (0, 1)] == pytest.approx([by_name[f"dsc/{s}"][name] for s in STRUCTURES])


def test_intervals_and_hollow_dots(cases: pd.DataFrame) -> None:
    """The bar of a dot ends where its t-interval does; of fewer than five cases there is none, and the dot is hollow."""
    few = cases[(cases["center"] != "Center 1") | (cases.index < 9)]
    centers = metrics.with_more(few, center_table(few, STRUCTURES), STRUCTURES)
    figure = centerplots.centers_figure(few, centers, STRUCTURES, "dsc", "dsc", dark=True)
    seen = next(trace for trace in figure.data if trace.mode == "markers")
    assert list(seen.customdata) == ["Center 0", "Center 1"]
    expected = t_interval(few.loc[few["center"] == "Center 0", "dsc"], bounds=(0, 1))
    assert seen.y[0] + seen.error_y.array[0] == pytest.approx(expected.high)
    assert seen.y[0] - seen.error_y.arrayminus[0] == pytest.approx(expected.low)
    assert seen.marker.color[1] == "rgba(0,0,0,0)" != seen.marker.color[0]


def test_the_funnel_names_who_lies_below(cases: pd.DataFrame, centers: pd.DataFrame) -> None:
    """Centers further below the mean of all cases than 3.09 standard errors, at their own n, with their names as text."""
    mean, spread = cases["dsc"].mean(), cases["dsc"].std()
    n = np.array(metrics.counts_of(cases, centers, "dsc"))
    below = set(centers["center"][centers["dsc"] < mean - 3.09 * spread / np.sqrt(n)])
    figure = centerplots.funnel_figure(cases, centers, "dsc", dark=False)
    texts = [note.text for note in figure.layout.annotations]
    assert f"<b>{len(below)} beyond 99.8 %</b>" in texts and below
    assert not any("<img" in text for text in texts)


def test_the_gap_is_seen_less_held_out(centers: pd.DataFrame) -> None:
    """In Dice points, of means over centers, the largest on top."""
    figure = centerplots.gap_figure(centers, STRUCTURES, dark=False)
    numbers = {note.y: float(re_number(note.text)) for note in figure.layout.annotations}
    for name in STRUCTURES:
        sides = centers.groupby("seen")[f"dsc/{name}"].mean()
        assert numbers[name] == pytest.approx(100 * (sides[True] - sides[False]), abs=0.05)
    assert [note.y for note in figure.layout.annotations] == sorted(numbers, key=numbers.__getitem__)


def re_number(text: str) -> str:
    """What stands between the tags of bold type."""
    return text.removeprefix("<b>").removesuffix("</b>")


def test_area_is_by_n(cases: pd.DataFrame) -> None:
    """Twice the cases, twice the area of the dot in sensitivity against specificity."""
    more = pd.concat([cases, cases[cases["center"] == "Center 0"]], ignore_index=True)
    centers = metrics.with_more(more, center_table(more, STRUCTURES), STRUCTURES)
    figure = centerplots.detection_figure(centers, dark=False)
    seen = next(trace for trace in figure.data if "Center 0" in list(trace.customdata))
    sizes = dict(zip(seen.customdata, seen.marker.size, strict=True))
    assert sizes["Center 0"] ** 2 == pytest.approx(2 * sizes["Center 1"] ** 2)
