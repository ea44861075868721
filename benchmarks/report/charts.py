"""Charts of the report as inline SVG.

Marks lie at percentages of the width, so that a chart fits any screen with its text at its own size. Rows (strips,
intervals, bars) have their text in HTML; plots of two axes have a height in pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

Point = tuple[float, float]

COLOURS = 8
_ROW_HEIGHT = 26
_PLOT_HEIGHT = 300
_TOP, _BOTTOM = 12, 40


def colour(index: int) -> str:
    """The style sheet's colour of a side by its number."""
    return f"var(--s{index % COLOURS})"


def row(name: str, marks: str, value: str, *, note: str = "", label: str = "", height: int = _ROW_HEIGHT) -> str:
    """One row: a name, a strip of marks drawn at percentages, and a value. Texts are escaped, marks are SVG.

    `label` says in words what the marks show; `height` is that of the strip in pixels.
    """
    small = f"<small>{escape(note)}</small>" if note else ""
    svg = f'<svg role="img" aria-label="{escape(label or name)}" height="{height}">{marks}</svg>'
    text = f'<div class="value">{escape(value)}</div>'
    return f'<div class="row"><div class="name">{escape(name)}{small}</div>{svg}{text}</div>'


def strip(values: Sequence[float], scale: tuple[float, float], fill: str) -> str:
    """Marks of a distribution: each value a tick, the middle half a box, the median a line, from low to high."""
    at = [_percent(value, scale) for value in sorted(values)]
    low, middle, high = (_percent(value, scale) for value in np.percentile(values, (25, 50, 75)))
    parts = [_rect(0, 100, 12, 2, "var(--track)"), _rect(low, max(high - low, 0.3), 5, 16, fill, opacity=0.28)]
    parts += [
        f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="9" y2="17" stroke="{fill}" stroke-width="1.5" opacity=".75"/>'
        for x in at
    ]
    parts.append(f'<line x1="{middle:.2f}%" x2="{middle:.2f}%" y1="3" y2="23" stroke="{fill}" stroke-width="3"/>')
    return "".join(parts)


def interval(ratio: float, low: float, high: float, scale: tuple[float, float], fill: str) -> str:
    """Marks of a ratio with its interval, beside a line at 1."""
    one, left, right, centre = (_percent(value, scale) for value in (1.0, low, high, ratio))
    return (
        _rect(0, 100, 12, 2, "var(--track)")
        + f'<line x1="{one:.2f}%" x2="{one:.2f}%" y1="0" y2="26" stroke="var(--soft)" stroke-dasharray="3 3"/>'
        + f'<line x1="{left:.2f}%" x2="{right:.2f}%" y1="13" y2="13" stroke="{fill}" stroke-width="5" opacity=".45"/>'
        + f'<circle cx="{centre:.2f}%" cy="13" r="5" fill="{fill}"/>'
    )


def bars(shares: Sequence[float | None]) -> tuple[str, int]:
    """Bars below each other in the colours of their numbers, none if the share is None; and their height."""
    parts = [
        _rect(0, 100, 4 + 18 * i, 12, "var(--track)") + _rect(0, max(100 * share, 0.3), 4 + 18 * i, 12, colour(i))
        for i, share in enumerate(shares)
        if share is not None
    ]
    return "".join(parts), 18 * len(shares) + 4


def stacked(shares: Sequence[float]) -> str:
    """Bars end to end in the colours of their numbers; the shares (0 to 1) add up to 1 or less."""
    parts, start = [_rect(0, 100, 7, 12, "var(--track)")], 0.0
    for i, share in enumerate(shares):
        parts.append(_rect(start, 100 * share, 7, 12, colour(i)))
        start += 100 * share
    return "".join(parts)


def legend(names: Sequence[str]) -> str:
    """The names beside the colours of their numbers."""
    items = (f'<span><i style="background:{colour(i)}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(items)}</div>'


@dataclass(frozen=True)
class Axis:
    """An axis of a plot: its title, its range (low < high; on a logarithmic one low > 0), and how ticks are written.

    `at` are the values of its ticks; without any they are round ones.
    """

    title: str
    low: float
    high: float
    log: bool = False
    at: tuple[float, ...] = ()

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the axis' low end and 1 at its high end."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to seven round values, or those that were given."""
        if self.at:
            return list(self.at)
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / 6))
            return [10.0**power for power in range(first, last + 1, every)]
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span))
        while span / step < 3:
            step /= 2
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def plot(x: Axis, y: Axis, marks: str, label: str, *, kind: str = "") -> str:
    """A plot of two axes around `marks`, SVG placed by `place`; `label` says in words what it shows.

    `kind` is the style sheet's class of its width.
    """
    bottom, parts = _PLOT_HEIGHT - _BOTTOM, []
    for value in x.ticks():
        at = place(x, y, value, y.low)[0]
        parts.append(_line((at, _TOP), (at, bottom), 'class="grid"'))
        parts.append(f'<text x="{at:.2f}%" y="{bottom + 15}" text-anchor="middle">{_tick(value)}</text>')
    for value in y.ticks():
        at = place(x, y, x.low, value)[1]
        parts.append(_line((0, at), (100, at), 'class="grid"'))
        parts.append(f'<text x="-5" y="{at + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    parts.append(f'<text x="50%" y="{_PLOT_HEIGHT - 6}" text-anchor="middle">{escape(x.title)}</text>')
    svg = f'<svg role="img" aria-label="{escape(label)}" height="{_PLOT_HEIGHT}">{"".join(parts)}{marks}</svg>'
    return f'<div class="plot {kind}"><div class="axis">{escape(y.title)}</div>{svg}</div>'


def place(x: Axis, y: Axis, horizontal: float, vertical: float) -> Point:
    """A point of a plot: percent of its width from the left, pixels from the top."""
    return 100 * x.place(horizontal), _TOP + (_PLOT_HEIGHT - _TOP - _BOTTOM) * (1 - y.place(vertical))


def dot(at: Point, fill: str, *, name: str, text: str = "") -> str:
    """A point of a plot with its text on the side that has room; `name` shows when it is pointed at."""
    shift, anchor = (-8, "end") if at[0] > 62 else (8, "start")
    circle = f'<circle cx="{at[0]:.2f}%" cy="{at[1]:.1f}" r="4.5" fill="{fill}"/>'
    position = f'x="{at[0]:.2f}%" dx="{shift}" y="{at[1] + 4:.1f}" text-anchor="{anchor}"'
    words = f'<text class="mark" {position}>{escape(text)}</text>' if text else ""
    return f"<g><title>{escape(name)}</title>{circle}{words}</g>"


def numbered(at: Point, number: int, fill: str, *, name: str) -> str:
    """A point of a plot with its number inside it."""
    circle = f'<circle cx="{at[0]:.2f}%" cy="{at[1]:.1f}" r="8" fill="{fill}" stroke="var(--card)"/>'
    text = f'<text class="inside" x="{at[0]:.2f}%" y="{at[1] + 3.5:.1f}" text-anchor="middle">{number}</text>'
    return f"<g><title>{escape(name)}</title>{circle}{text}</g>"


def lines(points: Sequence[Point], look: str) -> str:
    """A line through points of a plot; `look` are its attributes."""
    return "".join(_line(start, end, look) for start, end in itertools.pairwise(points))


def spread(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all values with a margin on both sides, never empty."""
    low, high = min(values), max(values)
    extra = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - extra, high + extra


def _line(start: Point, end: Point, look: str) -> str:
    ends = f'x1="{start[0]:.2f}%" y1="{start[1]:.1f}" x2="{end[0]:.2f}%" y2="{end[1]:.1f}"'
    return f"<line {look} {ends}/>"


def _tick(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:.4g}"


def _percent(value: float, scale: tuple[float, float]) -> float:
    return 100 * min(max((value - scale[0]) / (scale[1] - scale[0]), 0), 1)


def _rect(x: float, width: float, y: float, height: float, fill: str, opacity: float = 1.0) -> str:
    where = f'x="{x:.2f}%" width="{width:.2f}%" y="{y}" height="{height}"'
    return f'<rect {where} rx="2" fill="{fill}" opacity="{opacity:g}"/>'
