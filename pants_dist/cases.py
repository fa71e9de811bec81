"""Which hospital a case comes from, and PanTS's own split of it. Pure functions of the metadata.

The center rule of PanTS (no center id is released): `site == "1 Site"` names the center in `site detail`; a letter A to J
is an institute of University Hospital Basel, which is one hospital; `NA` is unknown; anything else names a pool of
centers. Spellings are folded through the table of aliases in centers.csv.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pants_dist.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

FIRST_TEST_NUMBER = 9001  # PanTS_00009001 and later are the official test split
UNKNOWN = "unknown"
BASEL = "University Hospital Basel"
EMPTY_CELLS = ("", "NA", "nan", "None")


@lru_cache(maxsize=1 << 16)
def tidy(text: str) -> str:
    """A cell as people mean it: no-break spaces, curly quotes, stray blanks and Excel's _x000D_ put right."""
    text = unicodedata.normalize("NFKC", str(text)).replace("’", "'").replace("_x000D_", " ")
    return " ".join(text.split())


@cache
def aliases() -> dict[str, str]:
    """Spelling of a center in the metadata -> its hospital ("unknown" for a repository that is no hospital)."""
    with resources.files("pants_dist").joinpath("centers.csv").open(encoding="utf-8") as file:
        return {tidy(row["spelling"]).casefold(): row["center"] for row in csv.DictReader(file)}


def hospital(name: str) -> str:
    """The one name under which a center's spellings are counted."""
    return aliases().get(tidy(name).casefold(), tidy(name))


def center_named(name: str) -> str:
    """The center that somebody's cell names, in any spelling: its hospital, "unknown" for none.

    "University Hospital Basel (C)" is that hospital; a bare letter stays, for outside PanTS anyone may call a site "A".
    """
    text = tidy(name)
    if text.casefold() in (UNKNOWN, *(cell.casefold() for cell in EMPTY_CELLS)):
        return UNKNOWN
    return BASEL if re.match(rf"{BASEL}\b", text, re.IGNORECASE) else hospital(text)


def center_of(site: str | None, site_detail: str | None) -> tuple[str, str]:
    """(center, kind) of a scan by PanTS's `site` and `site detail`; kind is "single", "pool" or "unknown"."""
    site, detail = tidy(site or ""), tidy(site_detail or "")
    if site in EMPTY_CELLS:
        return UNKNOWN, UNKNOWN
    if re.fullmatch("[A-J]", site):
        return BASEL, "single"
    if site == "1 Site" and detail not in EMPTY_CELLS:
        center = hospital(detail)
        return center, UNKNOWN if center == UNKNOWN else "single"
    return _pool_name(site, detail), "pool"


def _pool_name(site: str, detail: str) -> str:
    members = pool_members(detail)
    return f"{site} ({members[0]} ...)" if members else site


def pool_members(site_detail: str) -> list[str]:
    """The hospitals named in a pool's `site detail`, which separates them by semicolons or else by commas."""
    detail = tidy(site_detail)
    parts = detail.split(";" if ";" in detail else ",")
    return [hospital(part) for part in parts if tidy(part) not in EMPTY_CELLS]


def may_contain(site_detail: str, center: str) -> bool:
    """Whether a pool's `site detail` names the hospital in any spelling, or the beginning of its name.

    "Mayo Clinic" may be "Mayo Clinic Arizona", so a pool that names the one may contain the other.
    """
    text, name = tidy(site_detail).casefold(), tidy(center).casefold()
    spellings = [name, *(spelling for spelling, other in aliases().items() if other == center)]
    if any(re.search(rf"\b{re.escape(spelling)}\b", text) for spelling in spellings):
        return True
    beginnings = [re.escape(member.casefold()) for member in pool_members(site_detail)]
    return any(re.match(rf"{beginning}\b", name) for beginning in beginnings)


def official_split(case: str) -> str:
    """PanTS's own split by case id: "train" to 9000, "test" from 9001, "" for ids of another dataset."""
    number = re.fullmatch(r"PanTS_(\d{8})", case)
    if not number:
        return ""
    return "test" if int(number[1]) >= FIRST_TEST_NUMBER else "train"


def listing(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, sorted: the first ones, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def read_metadata(path: Path, as_released: bool = False) -> "pd.DataFrame":
    """PanTS's metadata.xlsx (or the same table as CSV), cells as tidied text, indexed by case id.

    `as_released` leaves blanks and odd characters in the cells, but for the ids.
    Raises UserError where the file cannot be read or has no column "PanTS ID", or an id twice.
    """
    import pandas as pd

    try:
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=None, engine="python", encoding="utf-8-sig")
    except Exception as error:  # openpyxl, zipfile, csv and unicode each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"metadata {path}: cannot be read ({reason}); give the released metadata.xlsx") from error
    table = table.rename(columns=tidy)
    if not as_released:
        table = table.map(tidy)
    if "PanTS ID" not in table:
        raise UserError(
            f'metadata {path}: no column "PanTS ID" among {listing(table.columns)}; give the released file'
        )
    table["PanTS ID"] = table["PanTS ID"].map(tidy)
    if (twice := table["PanTS ID"].duplicated()).any():
        raise UserError(
            f"metadata {path}: case {table.loc[twice, 'PanTS ID'].iloc[0]} stands in it twice; keep one row"
        )
    return table.set_index("PanTS ID")
