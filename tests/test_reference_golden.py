"""The PyTorch LAVT computes what the published implementation computes, in float64 and in float32."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from lavt_edge.reference import LAVT
from lavt_edge.tests.golden import CASES, COMPUTED, Case, golden_lavt


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case.load(request.param)


@pytest.fixture(scope="module")
def model(case: Case) -> Iterator[LAVT]:
    yield golden_lavt(case.config)
    gc.collect()


def test_keys_and_shapes_are_the_published_ones(case: Case, model: LAVT) -> None:
    published = {key: shape for key, shape in case.shapes.items() if not key.endswith(COMPUTED)}
    own = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(COMPUTED)}
    if case.config.variant == "lavt":  # there BERT is a file entry of its own
        own = {key: shape for key, shape in own.items() if not key.startswith("text_encoder.")}
    assert own == published


@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_logits_and_masks_are_the_published_ones(case: Case, model: LAVT, precision: torch.dtype) -> None:
    logits = case.run(model.to(precision))
    assert logits.dtype == precision
    error, agreement = case.compare(logits.numpy())
    print(f"{case.name} {precision}: relative error {error:.2e}, agreement {100 * agreement:.4f} %")
    assert error <= (1e-6 if precision == torch.float64 else case.float32_bound)
    assert agreement >= 0.9995
