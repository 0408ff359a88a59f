"""RAI against Overall, one mark per method, with labels that never lie on each other."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox, offset_copy

from duet.report.comparison_noise import Estimate
from duet.report.comparison_rows import ComparedBlock
from duet.report.figures import INK, MUTED, STYLE, light_grid, line_colour, new_figure

MARKERS = ("o", "s", "D", "^", "v", "P")
_MARK = 7.0  # points
_LABEL_WIDTH = 22  # characters in a line
_ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202)
_RINGS = (8.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0, 92.0)


@dataclass(frozen=True)
class Mark:
    """One method of the plot: its name, place in the grid, and both estimates."""

    label: str
    position: int
    overall: Estimate
    rai: Estimate
    hollow: bool


def marks_of(block: ComparedBlock) -> list[Mark]:
    """The methods that have both an Overall and an RAI."""
    marks = []
    for position, row in enumerate((*block.rivals, *block.upper_bounds)):
        overall, rai = row.indices["map50"]["overall"], row.indices["map50"]["rai"]
        if overall and rai:
            marks.append(Mark(row.label, position, overall, rai, row.kind != "method"))
    return marks


@matplotlib.rc_context(STYLE)
def overall_figure(block: ComparedBlock, size: tuple[float, float] = (6.0, 4.4)) -> Figure | None:
    """RAI against Overall with error bars: intervals where there are any, otherwise ± one standard deviation.

    Hollow marks keep old images or use several detectors. The joint model's Overall is a dotted line.

    Args:
        block: the methods.
        size: width and height in inches.

    Returns:
        The figure, or None when no method has both indices.
    """
    marks = marks_of(block)
    if not marks:
        return None
    figure = new_figure(*size)
    FigureCanvasAgg(figure)  # measures the labels
    figure.set_dpi(72)  # a pixel is a point: labels are laid out in the unit they are placed in
    axes = figure.add_subplot()
    for mark in marks:
        _draw_mark(axes, mark)
    axes.margins(0.12)
    axes.set(xlabel="Overall", ylabel="RAI")
    light_grid(axes, "both")
    _place_labels(figure, axes, marks, _draw_joint(axes, block))
    return figure


def labels_of(figure: Figure) -> list[Bbox]:
    """The boxes of the labels in pixels, for tests: none may touch another."""
    figure.draw_without_rendering()
    texts = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    return [_text_box(figure, text) for text in texts]


def error_of(found: Estimate) -> tuple[float, float] | None:
    """Lengths of the error bar below and above the mean; None when nothing is known of it.

    A percentile interval may lie beside its own value: resamples of few pictures are biased. The bar then ends at the
    mark.
    """
    if found.low is not None and found.high is not None:
        return max(0.0, found.mean - found.low), max(0.0, found.high - found.mean)
    return None if found.sd is None else (found.sd, found.sd)


def _draw_mark(axes: Axes, mark: Mark) -> None:
    colour = INK if mark.hollow else line_colour(mark.position)
    errors = {}
    for name, found in (("xerr", mark.overall), ("yerr", mark.rai)):
        error = error_of(found)
        if error:
            errors[name] = [[error[0]], [error[1]]]
    axes.errorbar(
        mark.overall.mean,
        mark.rai.mean,
        **errors,
        color=colour,
        elinewidth=1.1,
        marker=MARKERS[mark.position // 8 % len(MARKERS)],
        markersize=_MARK,
        markerfacecolor="none" if mark.hollow else colour,
        markeredgewidth=1.6,
    )


def _draw_joint(axes: Axes, block: ComparedBlock) -> Text | None:
    joint = next((row for row in block.rows if row.kind == "joint"), None)
    overall = joint.mean("overall") if joint else None
    low, high = axes.get_xlim()
    # Far off it would only squeeze the marks.
    if overall is None or overall > high + 0.5 * (high - low):
        return None
    axes.set_xlim(low, max(high, overall + 0.04 * (high - low)))
    axes.axvline(overall, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2.5)))
    beside = offset_copy(axes.get_xaxis_transform(), axes.figure, x=-5, y=3, units="points")
    return axes.text(overall, 0.0, joint.label, transform=beside, color=MUTED, ha="right", fontsize=8)


def _place_labels(figure: Figure, axes: Axes, marks: Sequence[Mark], other: Text | None) -> None:
    """Put each name at the first free place around its mark: off other names, marks and error bars, inside the axes."""
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken = [box for mark in marks for box in _obstacles(axes, mark)]
    if other is not None:
        taken.append(other.get_window_extent(figure.canvas.get_renderer()))
    for mark in sorted(marks, key=lambda mark: -mark.rai.mean):
        text = axes.annotate(
            textwrap.fill(mark.label, _LABEL_WIDTH),
            (mark.overall.mean, mark.rai.mean),
            textcoords="offset points",
            xytext=(0, 0),
            color=INK,
            fontsize=8.5,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5},
        )
        text.set_in_layout(False)
        text.arrow_patch.set_visible(False)
        size = _text_box(figure, text)
        x, y = axes.transData.transform((mark.overall.mean, mark.rai.mean))
        ring, dx, dy = _best_place(x, y, size, frame, taken)
        text.set_position((dx, dy))
        text.arrow_patch.set_visible(ring > 1)
        taken.append(_box_at(x + dx, y + dy, size.width, size.height))


def _best_place(x: float, y: float, size: Bbox, frame: Bbox, taken: Sequence[Bbox]) -> tuple[int, float, float]:
    best = (math.inf, 0, 0.0, 0.0)
    for ring, dx, dy in _places(size.width, size.height):
        box = _box_at(x + dx, y + dy, size.width, size.height)
        cost = sum(_shared(box, other) for other in taken) + 2 * _outside(box, frame)
        if cost < best[0]:
            best = (cost, ring, dx, dy)
        if cost == 0:
            break
    return best[1:]


def _places(width: float, height: float) -> Iterator[tuple[int, float, float]]:
    """Offsets of a label's middle, from near to far; its edge, not its middle, lies on the ring."""
    for ring, radius in enumerate(_RINGS):
        for angle in _ANGLES:
            cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            yield ring, cosine * (radius + width / 2), sine * (radius + height / 2)


def _obstacles(axes: Axes, mark: Mark) -> Iterator[Bbox]:
    x, y = axes.transData.transform((mark.overall.mean, mark.rai.mean))
    yield _box_at(x, y, _MARK + 4, _MARK + 4)
    for found, along in ((mark.overall, 0), (mark.rai, 1)):
        below, above = error_of(found) or (0.0, 0.0)
        ends = [[mark.overall.mean, mark.rai.mean] for _ in range(2)]
        ends[0][along] -= below
        ends[1][along] += above
        (x0, y0), (x1, y1) = axes.transData.transform(ends)
        yield Bbox.from_extents(x0 - 1, y0 - 1, x1 + 1, y1 + 1)


def _text_box(figure: Figure, text: Annotation) -> Bbox:
    renderer = figure.canvas.get_renderer()
    text.update_positions(renderer)
    box = Text.get_window_extent(text, renderer)  # without the arrow, which an annotation's own extent includes
    return Bbox.from_extents(box.x0 - 2, box.y0 - 1, box.x1 + 2, box.y1 + 1)


def _box_at(x: float, y: float, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _shared(first: Bbox, second: Bbox) -> float:
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Bbox, frame: Bbox) -> float:
    return box.width * box.height - _shared(box, frame)
