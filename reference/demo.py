"""The demo model: a small LAVT trained on generated scenes, and its weights in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..data.shapes import VOCABULARY
from ..errors import CheckpointError, reason_of
from .config import DEMO_WEIGHTS, LAVTConfig, TextConfig
from .lavt import LAVT

DEMO_VOCABULARY: Final[tuple[str, ...]] = VOCABULARY
DEMO_SIZE: Final = 240  # side of the square images it was trained on, in pixels
DEMO_CONFIG: Final = LAVTConfig(
    swin="demo",
    window=12,
    fusion_heads=(1, 1, 2, 2),
    variant="lavt_one",
    text=TextConfig(
        vocab_size=len(VOCABULARY), hidden_size=96, num_layers=2, num_heads=4, intermediate_size=384, max_positions=20
    ),
)


def load_demo(path: str | Path = DEMO_WEIGHTS) -> LAVT:
    """The demo model in eval mode, float32, on the CPU, with the configuration that its file holds.

    Raises CheckpointError if the file is missing or is not such a file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = LAVTConfig.from_dict(json.loads(metadata["config"]))
        _check_shapes(config, state)
        model = LAVT(config).eval()
        model.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; train it: python -m lavt_edge.reference.training") from error
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the demo model's weights ({reason_of(error)})") from error
    return model


def _check_shapes(config: LAVTConfig, state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError if the configuration asks for other tensors than the file has, before they take memory."""
    with torch.device("meta"):
        expected = LAVT(config).state_dict()
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in expected.items()}:
        raise ValueError("tensors of another model than its configuration says")


def demo_bytes(model: LAVT) -> bytes:
    """The file that `load_demo` reads: float16 weights, and the configuration in its metadata.

    A weight that float16 rounds to nothing is below 6e-8 and loses nothing; running variances stay float32, as they
    may be smaller than float16's normal range.
    """
    state = {}
    for key, value in model.state_dict().items():
        half = value.is_floating_point() and not key.endswith("running_var")
        state[key] = value.to(torch.float16 if half else value.dtype).contiguous()
    return to_bytes(state, metadata={"config": json.dumps(model.config.to_dict())})
