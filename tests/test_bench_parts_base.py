"""MACs per part of the base model, as the project's design counts them."""

from __future__ import annotations

import pytest
from lavt_edge.benchmarks.parts.costs import cost_rows
from lavt_edge.tests.base_export import CommandRun


def test_the_parts_of_base_are_154_gmacs(base: CommandRun) -> None:
    macs = {row.part: row.macs / 1e9 for row in cost_rows(base.bundle / "segmenter.onnx")}
    assert sum(macs.values()) == pytest.approx(154.22, abs=0.005)
    assert "other" not in macs
    # Convolutions and products of a level at 120x120 are half of what the published decoder needs there.
    assert macs["decoder.level0"] == pytest.approx(54.28, abs=0.01)
    assert macs["stage2.mlp"] == pytest.approx(18 * 2 * 900 * 512 * 2048 / 1e9)
