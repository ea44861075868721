"""A TensorRT whose engines launch torch kernels on our stream: all of CUDA's half is real, without TensorRT.

The engines compute what `runtime_bundle`'s graphs compute, from the addresses that the backend gave them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from lavt_edge.tests.runtime_bundle import weights
from lavt_edge.tests.runtime_simulated_cuda import Engine, SimulatedCuda, SimulatedTensorRT

_TYPES = {"INT64": "<i8", "FLOAT": "<f4", "UINT8": "|u1"}


class TorchTensorRT(SimulatedTensorRT):
    """`tensorrt` on a real device; `failing` lets the next enqueue raise an error in a kernel, which stays."""

    def __init__(self) -> None:
        super().__init__(SimulatedCuda())
        self.failing = False

    def make_context(self, engine: Engine) -> TorchContext:
        return TorchContext(engine)


class TorchContext:
    """An execution context; `enqueued` counts calls that came to the host, not those that a captured graph replays."""

    def __init__(self, engine: Engine) -> None:
        import torch

        self.engine, self.torch = engine, torch
        self.addresses: dict[str, int] = {}
        self.rows, self.enqueued = engine.batch or 0, 0
        embedding, projection = (torch.from_numpy(part).cuda() for part in weights())
        self._embedding, self._projection = embedding, projection

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return 1 <= shape[0] <= self.engine.max_batch and shape[1:] == self.engine.tensors[name][1]

    def execute_async_v3(self, handle: int) -> bool:
        torch, module = self.torch, self.engine.module
        self.enqueued += 1
        with torch.cuda.stream(torch.cuda.ExternalStream(handle)):
            if isinstance(module, TorchTensorRT) and module.failing:
                # An index outside of the table: the kernel asserts, and the context is lost from then on.
                torch.zeros(1, device="cuda")[torch.full((1,), 10**6, device="cuda")] += 1
                return True
            tensors = {name: self._tensor(name) for name in self.engine.tensors}
            if self.engine.role == "text_encoder":
                mask = tensors["attention_mask"].to(torch.float32).unsqueeze(-1)
                tensors["prompt"].copy_(self._embedding[tensors["input_ids"]] * mask)
            else:
                pixels = tensors["image"].to(torch.float32) / 255
                sentence = (tensors["prompt"] * tensors["word_mask"].unsqueeze(-1)).sum(1)
                score = pixels @ (sentence @ self._projection)[:, None, :, None]
                logits = torch.stack([pixels.mean(-1), score.squeeze(-1)], 1)
                tensors["logits"].copy_(logits)
                tensors["mask"].copy_(logits.argmax(1).to(torch.uint8))
        return True

    def _tensor(self, name: str) -> object:
        kind, shape, _ = self.engine.tensors[name]
        interface = {
            "shape": (self.rows, *shape),
            "typestr": _TYPES[kind],
            "data": (self.addresses[name], False),
            "version": 3,
        }
        return self.torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")


def expected(feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The logits (B,2,H,W) of the image graph, in float64."""
    pixels = feeds["image"].astype(np.float64) / 255
    sentence = (feeds["prompt"].astype(np.float64) * feeds["word_mask"][..., None]).sum(1)
    score = np.einsum("bhwc,bc->bhw", pixels, sentence @ weights()[1].astype(np.float64))
    return np.stack([pixels.mean(-1), score], 1)
