"""A run as text and tables for the terminal: the report's sections, without what only a page can draw."""

from __future__ import annotations

from collections.abc import Iterator

from ..timing.result import Result
from .content import Bars, Table, Text
from .format import headline
from .parts import estimate, kernels, layers, parts, roofline
from .sections import fidelity, figures, splits, sweeps

_SECTIONS = (figures, splits, sweeps, parts, roofline, estimate, kernels, layers, fidelity)


def terminal(result: Result) -> Iterator[str | Table]:
    """Lines and tables in the order in which they are shown."""
    machine = result.machine
    yield f"{headline(result)}, on {result.sides[0].device} ({machine.cpu.model}, {machine.threads} threads)"
    for make in _SECTIONS:
        section = make(result)
        if section is None:
            continue
        if section.note:
            yield f"{section.title}: {section.note}"
        for block in section.blocks:
            if isinstance(block, Text):
                yield block.text
            elif isinstance(block, Bars):
                yield Table(block.columns, [(bar.name, bar.note, bar.value) for bar in block.rows])
            elif isinstance(block, Table):
                yield block
