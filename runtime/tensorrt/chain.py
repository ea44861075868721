"""From a camera's frame to its mask on the device: three engines in a row, one of them the segmenter's own."""

from __future__ import annotations

from ..bundle import Bundle
from ..signature import Signature
from .backend import TensorRTBackend, checked_engine
from .buffers import BufferPlan
from .record import EngineRecord


class FrameChain(TensorRTBackend):
    """frame, prompt and word_mask to mask and logit; implements `Backend`.

    The frame's engine writes into the segmenter's image, the mask's reads the segmenter's logits, all on its stream
    and, from the second call on, in one CUDA graph. So one segmenter serves any number of chains, which add no more
    than the buffers of a frame and a mask. Calls of all of them, and of the segmenter alone, take turns.

    Raises as `load_engine` does.
    """

    def __init__(self, bundle: Bundle, frame: EngineRecord, mask: EngineRecord, segmenter: TensorRTBackend) -> None:
        super().__init__(*checked_engine(bundle, mask), beside=segmenter, linked=("logits",))
        self._frame = TensorRTBackend(*checked_engine(bundle, frame), beside=segmenter, linked=("image",))
        self._segmenter, self._changes_seen = segmenter, 0
        self.signatures = self._frame.signature, self.signature
        words = tuple(spec for spec in segmenter.signature.inputs if spec.name != "image")
        self.signature = Signature((*self._frame.signature.inputs, *words), self.signature.outputs)
        self._plan = BufferPlan(self.signature, 1, dynamic=False)
        buffers = self._frame._held.buffers | segmenter._held.buffers
        self._held.buffers |= {spec.name: buffers[spec.name] for spec in self.signature.inputs}

    def close(self) -> None:
        super().close()
        self._frame.close()

    def _set_batch(self, batch: int) -> None:
        """The segmenter's; what was captured is of no use after it had another."""
        self._segmenter._set_batch(batch)
        if self._changes_seen != self._segmenter._changes:
            self._changes_seen, self._runs = self._segmenter._changes, 0
            self._held.drop_graph()
        self._batch = batch
        self._turn.resident.pop("image", None)

    def _save_kernels(self) -> None:
        for backend in (self._frame, self._segmenter):
            backend._save_kernels()
        super()._save_kernels()

    def _enqueue(self) -> bool:
        return self._frame._enqueue() and self._segmenter._enqueue() and super()._enqueue()
