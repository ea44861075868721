"""The segmenter as requests share it, one call at a time behind a bounded queue; and what is answered of a result."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from .._base import exits
from ..errors import ExitCode, ImageError, InputError, LavtError, PromptError
from ..runtime import Prompt, Result, Segmenter
from ..runtime.images.coco import coco_mask

Described = dict[str, Any]
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Limits:
    """What a request may have, and the server at once.

    Attributes:
        upload: bytes of a request's body.
        pixels: of an image.
        sentences: of a request, and of all who watch together.
        characters: of a sentence.
        queue: requests that are read, wait or run.
        seconds: in which a body must come, and in which it must be answered.
        watchers: WebSockets.
        message: bytes of a WebSocket's message.
        connections: of all kinds.
    """

    upload: int = 16 << 20
    pixels: int = 50_000_000
    sentences: int = 8
    characters: int = 400
    queue: int = 16
    seconds: float = 30.0
    watchers: int = 8
    message: int = 16 << 10
    connections: int = 200


class Engine:
    """Runs what a request asks for in a thread, and says in one line why it cannot."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter, self.limits = segmenter, limits
        self._pool = ThreadPoolExecutor(1, "lavt_edge serve")
        self._slots = threading.Semaphore(limits.queue)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place in the queue. Raises HTTPException 503 if it is full."""
        if not self._slots.acquire(blocking=False):
            raise HTTPException(503, "too many requests at once: try again in a second", {"Retry-After": "1"})
        try:
            yield
        finally:
            self._slots.release()

    async def run(self, work: Callable[..., _Made], *given: Any) -> _Made:
        """Raises HTTPException: 422 for bad input, 503 without memory, 504 after the time-out."""
        future = self._pool.submit(work, self.segmenter, *given)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds)
        except asyncio.TimeoutError:
            raise HTTPException(504, f"not done in {self.limits.seconds:g} seconds: try again") from None
        except Exception as error:
            raise refusal_of(error) from error

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.segmenter.close()


def refusal_of(error: Exception) -> HTTPException:
    """The HTTP answer for what the runtime raised, with its own line."""
    if isinstance(error, (ImageError, PromptError, InputError)):
        return HTTPException(422, str(error))
    if isinstance(error, LavtError):
        return HTTPException(500, str(error))
    code, line = exits.describe(error)
    return HTTPException(500 if code == ExitCode.BUG else 503, (line or "").removeprefix("error: "))


def check_sentence(sentence: str, limits: Limits) -> None:
    """Raises PromptError if it is too long to be read at all."""
    if len(sentence) > limits.characters:
        raise PromptError(f"the sentence has {len(sentence)} characters: give at most {limits.characters}")


def warning_of(prompt: Prompt) -> str | None:
    """What of the sentence the model does not read, if anything."""
    unknown = f"the model does not know {', '.join(map(repr, prompt.unknown))}" if prompt.unknown else None
    return "too long: the model does not read its end" if prompt.truncated else unknown


def describe(result: Result, score: float, warning: str | None = None) -> Described:
    """The result as JSON; see `openapi.json`, Result."""
    mask = coco_mask(result.mask)
    described = {
        "sentence": result.sentence,
        "rle": mask["segmentation"],
        "box": mask["bbox"] if mask["area"] else None,
        "area": mask["area"],
        "score": round(score, 4),
    }
    return described if warning is None else {**described, "warning": warning}


def segment(segmenter: Segmenter, image: bytes, sentences: Sequence[str], started: float) -> Described:
    """The answer of POST /v1/segment in JSON; `started` as of time.perf_counter."""
    prompts = [segmenter.encode(sentence) for sentence in sentences]
    begun = time.perf_counter()
    results = segmenter.segment(image, prompts)
    model_seconds = time.perf_counter() - begun
    size = {"width": results[0].width, "height": results[0].height}
    described = []
    for prompt in prompts:
        result = results.pop(0)  # so that no more than one holds its mask and probability
        described.append(describe(result, result.score, warning_of(prompt)))
    latency = {"model_ms": 1e3 * model_seconds, "total_ms": 1e3 * (time.perf_counter() - started)}
    return {"image": size, "latency": {name: round(ms, 2) for name, ms in latency.items()}, "results": described}


def segment_png(segmenter: Segmenter, image: bytes, sentence: str) -> bytes:
    """The answer of POST /v1/segment for `Accept: image/png`: 255 for the object, 0 elsewhere."""
    mask, file = segmenter.segment(image, sentence).mask, io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()
