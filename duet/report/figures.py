"""Look and output of the figures: Matplotlib's object-oriented interface, PNG bytes, or SVG that follows a page.

A figure is made with the four theme colours below. In an SVG they become CSS variables (``--ink`` and so on), so
that one picture suits a light and a dark page, and text is left to the page's own font.
"""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1c2630"
MUTED = "#66727f"
RULE = "#d3dae1"
PAPER = "#fdfefe"
HEAT = "#0e5f80"
ON_HEAT = "#fefdfd"

_CSS_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", HEAT: "heat", ON_HEAT: "on-heat"}

# Mid-tones with enough contrast to a white and to a nearly black page.
LINES = ("#2f7fd1", "#d9622b", "#1f9a7a", "#b0529f", "#94781f", "#c23b52", "#5a7f94", "#6f63c9")

STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
    "hatch.color": RULE,
    "svg.fonttype": "none",
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, width and height in inches, that lays itself out; call it under ``STYLE``."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def line_colour(position: int) -> str:
    """Colour of the n-th line, from 0; they repeat after eight."""
    return LINES[position % len(LINES)]


def to_png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure on a white ground as PNG."""
    data = io.BytesIO()
    _save(figure, data, STYLE, format="png", dpi=dpi, facecolor="#ffffff")
    return data.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element to stand inside an HTML page.

    Args:
        figure: a figure made under ``STYLE``.
        name: word that is unique within the page; ids are derived from it, so that two figures never share one.
        description: what a screen reader says.
    """
    data = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    _save(figure, data, {**STYLE, "svg.hashsalt": name}, format="svg", metadata=metadata, transparent=True)
    svg = _for_page(data.getvalue())
    # Matplotlib's 72 points per inch are 96 CSS pixels; a little larger reads better.
    width = figure.get_figwidth() * 96 * 1.2
    head = f'<svg class="plot" role="img" aria-label="{escape(description)}" style="max-width:{width:.0f}px"'
    return svg.replace("<svg", head, 1)


def light_grid(axes: Axes, axis: str = "y") -> None:
    """Thin lines behind the data along one axis, without tick marks."""
    axes.grid(True, axis=axis)
    axes.tick_params(length=0)


def _save(figure: Figure, data: io.IOBase, style: dict[str, Any], **options: Any) -> None:
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A class name in a script that DejaVu lacks: an SVG shows it all the same, a PNG shows a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(data, **options)


def _for_page(svg: str) -> str:
    """Without declarations, fixed size, style sheet and fonts, colours as variables, ids only where used."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    head = re.sub(r' (?:width|height|xmlns:xlink|version)="[^"]*"', "", head)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    # Matplotlib writes the family on its own or, in older versions, at the end of the shorthand.
    body = re.sub(r" ?font-family: [^;\"]*;", "", body)
    body = re.sub(r"(font: [^;\"']*px) [^;\"]*", r"\1 var(--sans)", body)
    for colour, variable in _CSS_VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    used = set(re.findall(r"#([A-Za-z][\w.-]*)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    return f"{head}>{body}"
