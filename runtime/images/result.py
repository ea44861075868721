"""What a sentence refers to, made when it is read: the logits' difference at the model's size to a mask of the image's.

softmax((l0, l1))[1] = sigmoid(l1 - l0), so one channel is resized instead of two, and the mask needs no exponential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import BackendError

_Floats = npt.NDArray[np.float32]
_BAND = 32  # rows whose intermediate values stay in a core's cache
_JUST_OVER_HALF = np.nextafter(np.float32(0.5), np.float32(1))
# exp(87) is the last power that float32 holds comfortably; the probability is then 1.6e-38.
_LOWEST = np.float32(-87)


@dataclass(frozen=True, eq=False)
class Result:
    """What a sentence refers to in an image. Mask, probability and score are computed when they are first read.

    Attributes:
        sentence: the text.
        logit: float32 (h, w), of the probability, at the model's size.
        height: H of the mask: the image's, or the model's for `size="model"`.
        width: W of the mask.
    """

    sentence: str
    logit: _Floats = field(repr=False)
    height: int
    width: int

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """bool (H, W), where probability > 0.5; at the model's size the argmax of the logits. A tie is background."""
        return self._kept("mask", self._make_mask)

    @property
    def probability(self) -> _Floats:
        """float32 (H, W), of the object, from 0 to 1.

        The logits' difference is resized, bilinear with half-pixel centres, and antialiased where the image is smaller
        than the model's output (a pixel then weighs all the logits that it covers).
        """
        return self._kept("probability", self._make_probability)

    @property
    def score(self) -> float:
        """The mean probability within the mask, above 0.5 to 1; 0 if the mask is empty."""
        return self._kept("score", lambda: float(self.probability[self.mask].mean()) if self.mask.any() else 0.0)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made before. Threads that meet may each make it; all of them get the one that was kept first."""
        kept = vars(self).get(f"_{name}")
        return vars(self).setdefault(f"_{name}", make()) if kept is None else kept

    def _make_mask(self) -> npt.NDArray[np.bool_]:
        mask = np.empty((self.height, self.width), np.bool_)
        for rows, values in _bands(self.logit, self.height, self.width):
            np.greater(values, 0, out=mask[rows])
        return mask

    def _make_probability(self) -> _Floats:
        probability = np.empty((self.height, self.width), np.float32)
        for rows, values in _bands(self.logit, self.height, self.width):
            _sigmoid(values, probability[rows])
        return probability


def result_of(logits: _Floats, sentence: str, size: tuple[int, int] | None = None) -> Result:
    """The Result of logits (2, h, w) for an image of this height and width (None: at the logits' own size).

    Raises BackendError if a logit is not finite, as it happens when a graph of low precision overflows.
    """
    return _finite(logits[1] - logits[0], sentence, size)


def result_of_frame(mask: npt.NDArray[np.uint8], logit: _Floats, sentence: str) -> Result:
    """The Result of a mask (H, W) of zeros and ones that was made of the logits' difference (h, w). Raises likewise."""
    result = _finite(logit, sentence, (mask.shape[0], mask.shape[1]))
    vars(result)["_mask"] = mask.view(np.bool_)
    return result


def _finite(logit: _Floats, sentence: str, size: tuple[int, int] | None) -> Result:
    if not np.isfinite(logit).all():
        raise BackendError("the model's logits are not finite: use a graph of higher precision, such as fp32")
    return Result(sentence, logit, *(size or logit.shape))


def _bands(values: _Floats, height: int, width: int) -> Iterator[tuple[slice, _Floats]]:
    """`values` resized to (height, width), in bands of rows, each valid until the next."""
    everything = slice(0, height)
    if values.shape == (height, width):
        yield everything, values
    elif height <= values.shape[0]:
        yield everything, _by_pillow(values, height, width)
    elif width >= values.shape[1] and (cv2 := _opencv()) is not None:
        yield everything, cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        yield from _taller(_by_pillow(values, values.shape[0], width), height)


def _by_pillow(values: _Floats, height: int, width: int) -> _Floats:
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def _taller(values: _Floats, height: int) -> Iterator[tuple[slice, _Floats]]:
    """More rows, each of the two next to it: v[i] + t (v[i + 1] - v[i]). Pillow takes several times as long."""
    count, width = values.shape
    at = np.clip((np.arange(height) + 0.5) * (count / height) - 0.5, 0, count - 1)
    before = at.astype(np.intp)
    part = (at - before).astype(np.float32)[:, None]
    steps = np.diff(values, axis=0, append=values[-1:])
    made, step = np.empty((2, _BAND, width), np.float32)
    for start in range(0, height, _BAND):
        rows = slice(start, min(start + _BAND, height))
        size = rows.stop - start
        np.take(steps, before[rows], axis=0, out=step[:size], mode="clip")  # "raise" would buffer it
        step[:size] *= part[rows]
        np.take(values, before[rows], axis=0, out=made[:size], mode="clip")
        made[:size] += step[:size]
        yield rows, made[:size]


@cache
def _opencv() -> Any:
    """OpenCV if it can be imported, else None. It enlarges faster, to the same values but for rounding."""
    try:
        import cv2
    except Exception:  # one that was built for another numpy raises more than ImportError
        return None
    return cv2 if hasattr(cv2, "resize") else None


def _sigmoid(x: _Floats, out: _Floats) -> None:
    """1 / (1 + exp(-x)), over 0.5 exactly where x is positive, however close to zero."""
    np.maximum(x, _LOWEST, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += np.float32(1)
    np.divide(np.float32(1), out, out=out)
    np.maximum(out, (x > 0) * _JUST_OVER_HALF, out=out)
