"""Tables as the page has them: one look, numbers on the right, sets as badges."""

from typing import Any

AS_WIDE_AS_THE_CARD = 150  # least width of the column that takes what is left
THEMED: dict[str, Any] = {
    "theme": {"function": "themeQuartz.withParams({backgroundColor: 'var(--card)', foregroundColor: 'var(--ink)', "
              "borderColor: 'var(--line)', headerBackgroundColor: 'transparent', headerTextColor: 'var(--soft)', "
              "rowHoverColor: 'var(--hover)', fontFamily: 'inherit', headerFontWeight: 600, fontSize: 12, "
              "headerFontSize: 11.5, rowHeight: 29, headerHeight: 31, cellHorizontalPadding: 8, wrapperBorder: false, "
              "columnBorder: false, headerColumnResizeHandleDisplay: 'none', browserColorScheme: 'inherit'})"},
    "enableCellTextSelection": True, "animateRows": False, "suppressMenuHide": False,
}  # fmt: skip


def text_column(name: str, width: int, right: bool = False, badge: bool = False, heading: str = "") -> dict[str, Any]:
    """A column of words; one of AS_WIDE_AS_THE_CARD takes what is left."""
    column: dict[str, Any] = {"field": name, "headerName": heading or name, "filter": True, "tooltipField": name}
    column |= {"flex": 1, "minWidth": width} if width == AS_WIDE_AS_THE_CARD else {"width": width}
    if right:
        column["type"] = "rightAligned"
    if badge:
        column["cellRenderer"] = "Badge"
    return column


def number_column(name: str, digits: int = 3, bold: bool = False, heading: str = "", width: int = 0) -> dict[str, Any]:
    """A column of numbers; empty where there is none."""
    shown = f"params.value == null ? '' : d3.format(',.{digits}f')(params.value)"
    words = heading or name
    return {
        "field": name, "headerName": words, "filter": "agNumberColumnFilter", "type": "rightAligned",
        "width": width or max(70, 28 + 6 * len(words)), "valueFormatter": {"function": shown},
        "cellClass": "number ag-right-aligned-cell" + (" bold" if bold else ""),
    }  # fmt: skip
