"""Accuracy control: which layer groups may stay in INT8 within a budget of mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from .judge import Figures, Judge
from .products import Product, group_macs

# A group is ranked on so many cases that its MACs stay below this: all of a small model's, 32 of base's.
RANKING_MACS = 5e12

Build = Callable[[Sequence[Product]], ir.Model]
Report = Callable[[str], None]


@dataclass(frozen=True)
class GroupLoss:
    """What one layer group in INT8 costs alone: points of mean IoU, relative error of the logits; and its MACs."""

    group: str
    macs: int
    drop: float
    relative_error: float
    int8: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Placement:
    """The products that stay in INT8, the ranking of all groups, worst first, and the figures of the whole."""

    products: Sequence[Product]
    ranking: Sequence[GroupLoss]
    figures: Figures


def control(
    build: Build,
    products: Sequence[Product],
    judge: Judge,
    max_drop: float,
    report: Report = lambda step: None,
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
    judge_whole = whole or (lambda kept: judge.figures(build(kept)))
    limit = max(8, int(RANKING_MACS / total_macs)) if total_macs else None
    alone: dict[str, Figures] = {}
    for i, group in enumerate(macs):
        report(f"loss of {group} alone, {i + 1} of {len(macs)}")
        alone[group] = judge.figures(build(_of(products, [group])), limit=limit)
    worst_first = sorted(macs, key=lambda group: (alone[group].drop, alone[group].relative_error), reverse=True)
    kept, returned = list(products), 0
    while True:
        report(f"all but {returned} groups in INT8")
        figures = judge_whole(kept)
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
