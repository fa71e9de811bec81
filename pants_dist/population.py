"""The population table: the variables of a cohort summed up by group, and tests between two groups.

`published` and `corrected` stand beside each other; what they rest on is in cohort.py. The published shares are rounded
and the last one takes what is left of 100 %: so 68 delayed scans of 9,901, 0.7 %, are printed as 0.8 there.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from pants_dist.cases import UNKNOWN
from pants_dist.cohort import AGE, TUMORS, corrected, groups_of, published
from pants_dist.disk import replacing
from pants_dist.errors import UserError
from pants_dist.stats import NAN

if TYPE_CHECKING:
    from rich.console import Console

BY_MEAN = (AGE, TUMORS)  # told as mean (SD); other numbers as median (quartiles)
SCANS = "scans"
TESTED = ("variable", "test", "p", "smd")  # columns of `contrasts`
SHOWN_GROUPS = 4  # on a terminal, at most
PADDING = 3  # columns of a terminal between two of the table


@dataclass(frozen=True)
class Population:
    """A cohort summed up.

    `table` is in long form, one row a rule ("published", "corrected"), group, variable and level: group "all" first, then
    those of `by`, largest first and unknown last. Numbers have n (known), mean, sd, median, q1 and q3; levels of a
    category have n and percent, "unknown" among them, of all scans in the group. `pair` are the two known groups, if
    there are just two, and `tests` is `contrasts` of them under both rules (column rule), else empty.
    """

    by: str
    table: pd.DataFrame
    pair: tuple[str, str] | None
    tests: pd.DataFrame


def population(scans: pd.DataFrame, by: str = "split") -> Population:
    """The population of scans (cohort.py), in groups by split, sex, phase, center, manufacturer or nationality."""
    groups, rows, tests = groups_of(scans, by), [], []
    sizes = groups.value_counts()
    names = sorted(sizes.index, key=lambda name: (name == UNKNOWN, -sizes[name], name))
    known = [name for name in names if name != UNKNOWN]
    pair = (known[0], known[1]) if len(known) == 2 else None
    for rule, variables in (("published", published(scans)), ("corrected", corrected(scans))):
        for group, part in (("all", variables), *((name, variables[groups == name]) for name in names)):
            rows.append({"rule": rule, "group": group, "variable": SCANS, "level": "", "n": len(part)})
            for variable in variables:
                found = _described(part[variable], _levels(variables[variable]), rule == "published")
                rows += [{"rule": rule, "group": group, "variable": variable, **row} for row in found]
        if pair:
            tests += contrasts(variables.drop(columns=by, errors="ignore"), groups, *pair).assign(rule=rule).to_dict("records")
    return Population(by, pd.DataFrame(rows), pair, pd.DataFrame(tests, columns=["rule", *TESTED]))


def _levels(column: pd.Series) -> list[str] | None:
    """Levels of a category that occur, most scans first; None for numbers."""
    return None if pd.api.types.is_numeric_dtype(column) else column.value_counts().index.tolist()


def _described(column: pd.Series, levels: list[str] | None, to_hundred: bool) -> list[dict[str, Any]]:
    """Rows of one variable in one group; with `to_hundred` the last share is what the others, rounded, leave of 100 %."""
    known, total = column.dropna(), len(column)
    counts = {level: int((known == level).sum()) for level in levels or ()} | {UNKNOWN: total - len(known)}
    shares = {level: 100 * n / total for level, n in counts.items()}
    rows: list[dict[str, Any]] = []
    if levels is None:
        q1, median, q3 = known.quantile([0.25, 0.5, 0.75])
        rows = [{"level": "", "n": len(known), "mean": known.mean(), "sd": known.std(), "median": median, "q1": q1, "q3": q3}]
    elif to_hundred:
        *others, last = [level for level, n in counts.items() if n]
        shares[last] = round(100 - sum(round(shares[level], 1) for level in others), 1)
    return rows + [{"level": level, "n": n, "percent": shares[level]} for level, n in counts.items()]


def contrasts(variables: pd.DataFrame, groups: pd.Series, first: str, second: str) -> pd.DataFrame:
    """Two groups compared, variable by variable, unknown left out. Columns: variable, test, p, smd.

    Numbers: Mann-Whitney, and Welch's t-test for age; categories: chi-square, with Yates's correction where there are two
    levels (all SciPy's). p is NaN where there is nothing to compare. `smd` is the size of the difference, which unlike p
    does not grow with n: |mean - mean| / sqrt((variance + variance) / 2) (Austin, Stat Med 2009;28:3083), for categories
    the Mahalanobis distance of their shares (Yang & Dalton, SAS Global Forum 2012, 335).
    """
    rows: list[tuple[Hashable, str, float, float]] = []
    for variable in variables:
        column = variables[variable].dropna()
        one, other = (column[groups.loc[column.index] == name] for name in (first, second))
        found = _numbers(variable, one, other) if _levels(column) is None else _categories(one, other)
        rows += [(variable, *result) for result in found]
    return pd.DataFrame(rows, columns=list(TESTED))


def _numbers(variable: Hashable, one: pd.Series, other: pd.Series) -> list[tuple[str, float, float]]:
    if min(len(one), len(other)) < 2:
        return [("Mann-Whitney", NAN, NAN)]
    spread = math.sqrt((one.var() + other.var()) / 2)
    smd = abs(one.mean() - other.mean()) / spread if spread else NAN
    found = [("Mann-Whitney", float(stats.mannwhitneyu(one, other).pvalue), smd)]
    if variable == AGE:
        found.append(("Welch", float(stats.ttest_ind(one, other, equal_var=False).pvalue), smd))
    return found


def _categories(one: pd.Series, other: pd.Series) -> list[tuple[str, float, float]]:
    levels = sorted({*one, *other})
    counts = np.array([[(part == level).sum() for level in levels] for part in (one, other)])
    name = "chi-square (Yates)" if len(levels) == 2 else "chi-square"
    if len(levels) < 2 or not counts.sum(axis=1).all():
        return [(name, NAN, NAN)]
    return [(name, float(stats.chi2_contingency(counts).pvalue), _distance(counts))]


def _distance(counts: np.ndarray) -> float:
    """Mahalanobis distance of two rows of counts, as shares without the first level, which follows from the others."""
    shares = counts[:, 1:] / counts.sum(axis=1, keepdims=True)
    covariance = sum(np.diag(row) - np.outer(row, row) for row in shares) / 2
    apart = shares[0] - shares[1]
    return math.sqrt(max(float(apart @ np.linalg.pinv(covariance) @ apart), 0.0))


def text(row: dict[str, Any]) -> str:
    """A row of the population table as papers print it: "60.6 (13.0)", "0.81 (0.74, 0.98)", "2,358 (23.8)"."""
    if row["variable"] == SCANS:
        return f"{row['n']:,}"
    if row["level"]:
        return f"{row['n']:,} ({row['percent']:.1f})"
    if not row["n"]:
        return ""
    if row["variable"] in BY_MEAN:
        return f"{row['mean']:.1f}" + (f" ({row['sd']:.1f})" if row["n"] > 1 else "")
    return f"{row['median']:,.2f} ({row['q1']:,.2f}, {row['q3']:,.2f})"


def side_by_side(found: Population) -> pd.DataFrame:
    """The table as it is read: a row a variable and level; published, corrected and corrected by group in columns.

    Of two groups also the standardised mean difference, corrected, in the first row of each variable.
    """
    cells = found.table.assign(text=[text(row) for row in found.table.to_dict("records")])
    cells = cells[(cells["level"] != UNKNOWN) | (cells["n"] > 0)]
    places = {variable: at for at, variable in enumerate(cells["variable"].unique())}
    keys = list(dict.fromkeys(zip(cells["variable"], cells["level"], strict=True)))
    keys.sort(key=lambda key: (places[key[0]], key[1] == UNKNOWN))
    wide = pd.DataFrame(keys, columns=["variable", "level"])
    for (rule, group), part in cells.groupby(["rule", "group"], sort=False):
        if rule == "corrected" or group == "all":
            texts = {(row["variable"], row["level"]): row["text"] for row in part.to_dict("records")}
            wide[rule if group == "all" else group] = [texts.get(key, "") for key in keys]
    if found.pair:
        of = found.tests[found.tests["rule"] == "corrected"].drop_duplicates("variable").set_index("variable")["smd"].dropna()
        first = ~wide["variable"].duplicated()
        wide["SMD"] = [f"{of[name]:.2f}" if name in of and at else "" for name, at in zip(wide["variable"], first, strict=True)]
    return wide


def facts(found: Population) -> dict[str, Any]:
    """Table and tests as plain data that JSON can hold; what is not there is left out, a p that is none is None."""
    rows = [{key: value for key, value in row.items() if value == value} for row in found.table.to_dict("records")]
    tests = [{key: None if value != value else value for key, value in row.items()} for row in found.tests.to_dict("records")]
    return {"by": found.by, "table": rows, "groups_compared": found.pair, "tests": tests}


def check_ending(path: Path) -> None:
    """Raises UserError for a file that `write_table` does not write."""
    if path.suffix not in (".csv", ".md"):
        raise UserError(f"--out {path}: give a file that ends in .csv or .md")


def write_table(path: Path, found: Population) -> None:
    """`side_by_side` as CSV or Markdown, by the file's ending. Raises UserError for another one."""
    check_ending(path)
    wide = side_by_side(found)
    rows = [list(wide.columns), ["---"] * len(wide.columns), *wide.to_numpy().tolist()]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    content = wide.to_csv(index=False) if path.suffix == ".csv" else "".join(f"| {' | '.join(row)} |\n" for row in cells)
    with replacing(path) as file:
        file.write(content.encode())


def print_population(found: Population, console: "Console") -> None:
    """Table and tests on a terminal; of many groups the largest, as many as it has room for."""
    wide = side_by_side(found)
    wide["variable"] = wide["variable"].mask(wide["variable"].duplicated(), "")
    groups = [name for name in wide if name not in ("variable", "level", "published", "corrected", "SMD")]
    room = console.width - sum(_longest_word(wide, name) + PADDING for name in wide if name not in groups)
    taken = np.cumsum([_longest_word(wide, name) + PADDING for name in groups])
    more = groups[max(min(int((taken <= room).sum()), SHOWN_GROUPS), 1) :]
    _print_table("Population", wide.drop(columns=more), ("variable", "level"), console)
    if more:
        console.print(f"{len(more)} more groups: --out FILE.csv writes them all", style="dim")
    console.print("mean (SD), median (quartiles), scans (%); groups by the corrected rules", style="dim")
    if found.pair:
        shown = found.tests[["variable", "test"]].drop_duplicates()
        for rule in ("published", "corrected"):
            p_values = found.tests[found.tests["rule"] == rule].set_index(["variable", "test"])["p"]
            known = [p_values.get(key, NAN) for key in zip(shown["variable"], shown["test"], strict=True)]
            shown[f"p {rule}"] = ["" if p != p else f"{p:.3g}" for p in known]
        _print_table(" against ".join(found.pair), shown, ("variable", "test"), console)


def _widths(cells: pd.DataFrame, room: int) -> dict[str, int | None]:
    """Characters of each column: as its longest word, and more where most is lacking; None where not all words fit."""
    widths = {name: _longest_word(cells, name) for name in cells}
    whole = {name: max(width, *map(len, cells[name])) for name, width in widths.items()}
    spare = room - sum(widths.values())
    if spare < 0:
        return dict.fromkeys(widths)
    for _ in range(min(spare, sum(whole.values()) - sum(widths.values()))):
        widths[max(widths, key=lambda name: whole[name] - widths[name])] += 1
    return dict(widths)


def _longest_word(cells: pd.DataFrame, name: str) -> int:
    """Characters below which a column would be cut within words."""
    return max(len(word) for cell in (str(name), *cells[name]) for word in (cell.split() or [""]))


def _print_table(title: str, cells: pd.DataFrame, to_the_left: Sequence[str], console: "Console") -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, width in _widths(cells, console.width - PADDING * cells.shape[1]).items():
        side: Literal["left", "right"] = "left" if name in to_the_left else "right"
        table.add_column(str(name), justify=side, overflow="fold", width=width)
    for row in cells.itertuples(index=False, name=None):
        table.add_row(*row)
    console.print(table)
