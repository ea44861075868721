"""Accuracy control: which layer groups may stay in INT8 within a budget of mean IoU, and their ranking as a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .._base.progress import Report, ignore
from .evaluator import Figures
from .products import Product, group_macs

# A group is ranked on so many cases that its MACs stay below this: all of a small model's, 2 of base's.
RANKING_MACS = 3.2e11

# The chart, in pixels and RGB.
_ROW, _LABEL, _BARS, _MARGIN = 22, 210, 520, 16
_INT8, _KEPT, _INK, _GRID = (46, 112, 180), (214, 118, 44), (30, 30, 30), (215, 215, 215)


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


@dataclass(frozen=True)
class Placement:
    """The products that stay in INT8, and the figures of the whole."""

    products: Sequence[Product]
    figures: Figures


def losses_alone(
    products: Sequence[Product],
    evaluate_alone: Callable[[str, int | None], Figures],
    report: Report = ignore,
    *,
    total_macs: int = 0,
) -> dict[str, Figures]:
    """What each group costs if it alone is in INT8.

    `evaluate_alone` gives the figures of a group on the first cases up to a limit, few of which tell groups apart by
    their logits but not by their masks. `total_macs` of the graph bounds how many.
    """
    groups = group_macs(products)
    limit = max(2, int(RANKING_MACS / total_macs)) if total_macs else None
    alone: dict[str, Figures] = {}
    for i, group in enumerate(groups):
        report(f"error of {group} alone, {i + 1} of {len(groups)}")
        alone[group] = evaluate_alone(group, limit)
    return alone


def select_int8_groups(
    products: Sequence[Product],
    alone: Mapping[str, Figures],
    evaluate: Callable[[Sequence[Product]], Figures],
    max_drop: float,
    report: Report = ignore,
    *,
    saved: Mapping[str, float] | None = None,
) -> Placement:
    """Ranks the groups by the error of the logits that each causes `alone`, then returns as few of the worst as it
    takes, found by bisection, to higher precision: all that stay cost at most `max_drop` points of mean IoU together.

    `evaluate` gives the figures of all products that stay. With the time that each group has `saved`, the worst are
    those that cost the most per time.
    """
    macs = group_macs(products)

    def badness(group: str) -> float:
        return alone[group].relative_error / (1.0 if saved is None else max(saved[group], 1e-9))

    worst_first = sorted(macs, key=badness, reverse=True)

    def without(returned: int) -> tuple[list[Product], Figures]:
        report(f"all but {returned} of {len(macs)} groups in INT8")
        staying = set(worst_first[returned:])
        kept = [product for product in products if product.group in staying]
        return kept, evaluate(kept)

    returned, (kept, figures) = 0, without(0)
    if figures.drop > max_drop:
        too_few, returned, kept = 0, len(worst_first), []
        while returned - too_few > 1:
            middle = (returned + too_few) // 2
            fewer, of_fewer = without(middle)
            if of_fewer.drop <= max_drop:
                returned, kept, figures = middle, fewer, of_fewer
            else:
                too_few = middle
    return Placement(kept, figures)


def rank_groups(products: Sequence[Product], alone: Mapping[str, Figures], kept: Sequence[Product]) -> list[GroupLoss]:
    """All groups, the one that causes the largest error of the logits first, and whether they were kept in INT8."""
    macs, staying = group_macs(products), {product.group for product in kept}
    ranking = [
        GroupLoss(group, macs[group], alone[group].drop, alone[group].relative_error, group in staying)
        for group in macs
    ]
    return sorted(ranking, key=lambda loss: loss.relative_error, reverse=True)


def draw_ranking(ranking: Sequence[GroupLoss], title: str, path: Path) -> None:
    """Writes a PNG with a bar for each group, worst first: the error of the logits that it causes alone, and its MACs.

    Blue groups are INT8 in the graph, orange ones were returned to higher precision.
    """
    font = ImageFont.load_default(13)
    width, height = _LABEL + _BARS + 190 + 2 * _MARGIN, _ROW * (len(ranking) + 3) + 2 * _MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(15))
    left, top = _MARGIN + _LABEL, _MARGIN + 2 * _ROW
    scale = _BARS / max(1e-4, *(loss.relative_error for loss in ranking))
    total = sum(loss.macs for loss in ranking) or 1
    draw.line([(left, top - 4), (left, top + _ROW * len(ranking))], _GRID, 2)
    for i, loss in enumerate(ranking):
        y = top + i * _ROW
        draw.text((_MARGIN, y), loss.group, _INK, font)
        end = left + max(1, loss.relative_error * scale)
        draw.rectangle([left, y + 3, end, y + _ROW - 6], _INT8 if loss.int8 else _KEPT)
        figures = f"{100 * loss.relative_error:6.3f} %   {100 * loss.macs / total:5.1f} % MACs"
        draw.text((left + _BARS + 10, y), figures, _INK, font)
    y = top + len(ranking) * _ROW + 6
    text = "error of the logits with this group alone in INT8; blue: INT8, orange: returned to higher precision"
    draw.text((_MARGIN, y), text, _INK, font)
    image.save(path, format="PNG")
