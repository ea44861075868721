"""Accuracy control: which layer groups may stay in INT8 within a budget of mean IoU, and their ranking as a chart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from PIL import Image, ImageDraw, ImageFont

from .._base.progress import Report, ignore
from .evaluator import Evaluator, Figures
from .products import Product, group_macs

# A group is ranked on so many cases that its MACs stay below this: all of a small model's, 32 of base's.
RANKING_MACS = 5e12

# The chart, in pixels and RGB.
_ROW, _LABEL, _BARS, _MARGIN = 22, 210, 520, 16
_INT8, _KEPT, _INK, _GRID = (46, 112, 180), (214, 118, 44), (30, 30, 30), (215, 215, 215)

Build = Callable[[Sequence[Product]], ir.Model]


@dataclass(frozen=True)
class GroupLoss:
    """What one layer group costs if it alone is in INT8."""

    group: str
    """Its name, such as "stage2.mlp.fc1"."""
    macs: int
    """Its multiply-accumulates for one image."""
    drop: float
    """Points of mean IoU lost against FP32."""
    relative_error: float
    """Of the logits, as in `Figures`."""
    int8: bool
    """Whether it is in INT8 in the graph that was written."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Placement:
    """The products that stay in INT8, the ranking of all groups, worst first, and the figures of the whole."""

    products: Sequence[Product]
    ranking: Sequence[GroupLoss]
    figures: Figures


def select_int8_groups(
    build: Build,
    products: Sequence[Product],
    evaluator: Evaluator,
    max_drop: float,
    report: Report = ignore,
    *,
    total_macs: int = 0,
    whole: Callable[[Sequence[Product]], Figures] | None = None,
) -> Placement:
    """Ranks the groups by the loss that each causes alone, then returns the worst to higher precision, one by one,
    until all that stay cost at most `max_drop` points of mean IoU together.

    `build` makes the graph with the given products in INT8. The loss is noisy where few sentences are held out, so
    groups of equal drop are ranked by the error of their logits. `total_macs` of the graph bounds what ranking costs.
    `whole` judges all products together, by default as `build` makes them.
    """
    macs = group_macs(products)
    evaluate_whole = whole or (lambda kept: evaluator.evaluate(build(kept)))
    limit = max(8, int(RANKING_MACS / total_macs)) if total_macs else None
    alone: dict[str, Figures] = {}
    for i, group in enumerate(macs):
        report(f"loss of {group} alone, {i + 1} of {len(macs)}")
        alone[group] = evaluator.evaluate(build(_of(products, [group])), limit=limit)
    worst_first = sorted(macs, key=lambda group: (alone[group].drop, alone[group].relative_error), reverse=True)
    kept, returned = list(products), 0
    while True:
        report(f"all but {returned} groups in INT8")
        figures = evaluate_whole(kept)
        if figures.drop <= max_drop or not kept:
            break
        kept = _of(kept, worst_first[returned + 1 :])
        returned += 1
    return Placement(kept, _ranking(worst_first, macs, alone, {one.group for one in kept}), figures)


def _of(products: Iterable[Product], groups: Iterable[str]) -> list[Product]:
    wanted = set(groups)
    return [one for one in products if one.group in wanted]


def _ranking(
    order: Sequence[str], macs: Mapping[str, int], alone: Mapping[str, Figures], kept: set[str]
) -> list[GroupLoss]:
    return [
        GroupLoss(group, macs[group], alone[group].drop, alone[group].relative_error, group in kept) for group in order
    ]


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
