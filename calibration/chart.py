"""The ranking of accuracy control as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .control import GroupLoss

_ROW, _LABEL, _BARS, _MARGIN = 22, 210, 520, 16
_INT8, _KEPT, _INK, _GRID = (46, 112, 180), (214, 118, 44), (30, 30, 30), (215, 215, 215)


def draw_ranking(ranking: Sequence[GroupLoss], title: str, path: Path) -> None:
    """Writes a PNG with a bar for each group, worst first: points of mean IoU that it costs alone, and its MACs.

    Blue groups are INT8 in the graph, orange ones were returned to higher precision.
    """
    font = ImageFont.load_default(13)
    width, height = _LABEL + _BARS + 190 + 2 * _MARGIN, _ROW * (len(ranking) + 3) + 2 * _MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(15))
    low = min(0.0, *(one.drop for one in ranking))
    high = max(0.01, *(one.drop for one in ranking))
    left, top = _MARGIN + _LABEL, _MARGIN + 2 * _ROW
    scale = _BARS / (high - low)
    zero = left - low * scale
    total = sum(one.macs for one in ranking) or 1
    draw.line([(zero, top - 4), (zero, top + _ROW * len(ranking))], _GRID, 2)
    for i, one in enumerate(ranking):
        y = top + i * _ROW
        draw.text((_MARGIN, y), one.group, _INK, font)
        ends = sorted((zero, zero + one.drop * scale))
        draw.rectangle([ends[0], y + 3, max(ends[1], ends[0] + 1), y + _ROW - 6], _INT8 if one.int8 else _KEPT)
        draw.text((left + _BARS + 10, y), f"{one.drop:+.3f}   {100 * one.macs / total:5.1f} % MACs", _INK, font)
    y = top + len(ranking) * _ROW + 6
    text = "points of mean IoU lost with this group alone in INT8; blue: INT8, orange: returned to higher precision"
    draw.text((_MARGIN, y), text, _INK, font)
    image.save(path, format="PNG")
