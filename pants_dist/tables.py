"""A table for programs (CSV), for readers (Markdown), for papers (LaTeX) and for the page: the same numbers in each.

In all but the CSV a column with /low and /high is one cell, "0.82 (0.78 to 0.86)", without its /n, and what is not known is
blank.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pants_dist.disk import replacing

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "○": r"$\circ$"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def write_table(out: Path, name: str, table: pd.DataFrame) -> None:
    """OUT/name.csv with every digit, OUT/name.md and OUT/name.tex (booktabs) as people read it."""
    headings, lines = shown(table)
    texts = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "md": _lines(headings, lines, lambda cells: f"| {' | '.join(cells)} |", _markdown, f"|{'---|' * len(headings)}\n"),
        "tex": f"\\begin{{tabular}}{{{_columns(table)}}}\n\\toprule\n"
        + _lines(headings, lines, lambda cells: " & ".join(cells) + r" \\", _latex, "\\midrule\n")
        + "\\bottomrule\n\\end{tabular}\n",
    }
    for ending, text in texts.items():
        with replacing(out / f"{name}.{ending}") as file:
            file.write(text.encode())


def shown(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text, each number with its interval."""
    names = [name for name in table if not (name.endswith(("/low", "/high", "/n")) and name.rpartition("/")[0] in table)]
    records = table.to_dict("records")
    return names, [[_cell(row, name) for name in names] for row in records]


def _cell(row: dict[Any, Any], name: str) -> str:
    if (name == "p" or name.startswith(("p ", "p_"))) and row[name] is not None and row[name] < 0.001:
        return "< 0.001"
    text, low = number(row[name]), row.get(f"{name}/low")
    return text if not text or low is None or low != low else f"{text} ({number(low)} to {number(row[f'{name}/high'])})"


def number(value: Any) -> str:
    """A cell as text: whole numbers whole, others with three digits after the point (or in all, if very small)."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        return str(value)
    found = float(value)
    if found.is_integer() and abs(found) < 1e15:
        return f"{found:,.0f}" if not isinstance(value, float) else f"{found:.1f}" if abs(found) < 100 else f"{found:.0f}"
    return f"{found:.3f}" if abs(found) >= 0.001 else f"{found:.1e}"


def _lines(
    headings: list[str], lines: list[list[str]], row: Callable[[list[str]], str], escape: Callable[[str], str], rule: str
) -> str:
    head, *body = (row([escape(cell) for cell in cells]) + "\n" for cells in (headings, *lines))
    return head + rule + "".join(body)


def _markdown(text: str) -> str:
    return text.replace("|", "\\|")


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def _columns(table: pd.DataFrame) -> str:
    headings, _ = shown(table)
    return "".join("r" if pd.api.types.is_numeric_dtype(table[name]) else "l" for name in headings)
