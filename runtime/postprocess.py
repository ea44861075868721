"""Logits to a probability and a mask at the image's own size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import BackendError

_JUST_OVER_HALF = np.nextafter(np.float32(0.5), np.float32(1))
# exp(87) is the last power that float32 holds comfortably; the probability is then 1.6e-38.
_LOWEST = np.float32(-87)


def foreground(
    logits: npt.NDArray[np.float32], height: int, width: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """The object's mask, bool (height, width), and probability, float32 (height, width), from logits (2, h, w).

    softmax((l0, l1))[1] = sigmoid(l1 - l0), so the difference alone is resized: bilinear with half-pixel centres, and
    antialiased where the image is smaller than the logits (a pixel then weighs all the logits it covers).
    The mask is `probability > 0.5`. At equal size it is the argmax of the logits; a tie is background.

    Raises BackendError where a logit is not finite, as it happens when a graph of low precision overflows.
    """
    difference = logits[1] - logits[0]
    if not np.isfinite(difference).all():
        raise BackendError("the model's logits are not finite: use a graph of higher precision, such as fp32")
    if difference.shape != (height, width):
        resized = Image.fromarray(difference).resize((width, height), Image.Resampling.BILINEAR)
        difference = np.asarray(resized)
    mask = difference > 0
    return mask, _sigmoid(difference, mask)


def _sigmoid(x: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """1 / (1 + exp(-x)), over 0.5 exactly where x is positive, however close to zero."""
    probability = np.maximum(x, _LOWEST)
    np.negative(probability, out=probability)
    np.exp(probability, out=probability)
    probability += np.float32(1)
    np.divide(np.float32(1), probability, out=probability)
    return np.maximum(probability, positive * _JUST_OVER_HALF, out=probability)
