"""How figures look, in light and in dark. Seen centers are blue and held-out ones orange, as in report.html."""

import plotly.graph_objects as go

SEEN, HELD_OUT = "#2f6fdf", "#e07b12"
RUN_COLORS = ("#2f6fdf", "#c2410c", "#0f9d75", "#9d4edd", "#b58900", "#d6336c")
INK = {False: "#1c2128", True: "#e6e9ee"}
SOFT = {False: "#68707b", True: "#939ca8"}
LINES = {False: "#eceef1", True: "#262c35"}
BAND = {False: "#d3d9e2", True: "#3a424e"}
BARS = {False: "#b4bac4", True: "#5b6470"}
ALARM = {False: "#c62828", True: "#ff7b72"}
FONT = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'


def color_of(seen: bool) -> str:
    """Of the dots of centers."""
    return SEEN if seen else HELD_OUT


def clear(color: str, share: float) -> str:
    """A color #rrggbb that lets what is behind shine through."""
    red, green, blue = (int(color[n : n + 2], 16) for n in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def plain_figure(dark: bool, height: int) -> go.Figure:
    """A figure without anything in it."""
    figure = go.Figure()
    style(figure, dark, height)
    return figure


def style(figure: go.Figure, dark: bool, height: int) -> None:
    """Give a figure the page's look."""
    figure.update_layout(
        height=height, showlegend=False, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": SOFT[dark], "size": 11, "family": FONT}, margin={"l": 42, "r": 14, "t": 12, "b": 34},
        uirevision="kept", hoverlabel={"font": {"family": FONT, "size": 12}},
    )  # fmt: skip
    axis = {"gridcolor": LINES[dark], "zeroline": False, "title_font_size": 11, "title_standoff": 6, "automargin": False}
    figure.update_xaxes(**axis).update_yaxes(**axis)


def say_nothing(figure: go.Figure, words: str) -> go.Figure:
    """Words in the middle of a figure that has nothing to show."""
    figure.add_annotation(text=words, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)
