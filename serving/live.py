"""The camera's frames, segmented for who watches. A slow watcher misses frames; it holds up neither loop nor others."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._base import strict_json
from ..errors import PromptError
from ..runtime import Prompt, Result, Segmenter
from .engine import Described, Limits, check_sentence, describe, refusal_of, warning_of
from .metrics import Metrics

if TYPE_CHECKING:
    from .source import Frame, Source

_SHOWN_SIDE = 1280  # larger frames are reduced before they are segmented and sent
_QUALITY = 82
_UNDERWAY = 2  # frames that a watcher has been sent and has not acknowledged
_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Picture:
    """A frame as JPEG, its figures, and what each sentence refers to in it."""

    jpeg: bytes
    figures: Mapping[str, Any]
    results: Mapping[str, Described]


class Watcher:
    """A WebSocket: its sentences, and the newest picture that it has not been sent. Lives in the event loop."""

    def __init__(self) -> None:
        self.prompts: dict[str, Prompt] = {}
        self.problems: dict[str, str] = {}
        self._newest: Picture | None = None
        self._underway = 0
        self._state_due = True
        self._changed = asyncio.Event()
        self._changed.set()

    def offer(self, picture: Picture) -> bool:
        """Whether the picture before was sent; else it is dropped."""
        dropped, self._newest = self._newest is not None, picture
        self._changed.set()
        return not dropped

    def say_state(self) -> None:
        self._state_due = True
        self._changed.set()

    def acknowledge(self) -> None:
        self._underway = max(0, self._underway - 1)
        self._changed.set()

    async def next_message(self, problem: str | None) -> bytes | str:
        """A frame: the length of a JSON text in four bytes, the text, a JPEG; or the state of the sentences."""
        while True:
            if self._state_due:
                self._state_due = False
                state = {"ready": list(self.prompts), "problems": self.problems, "source_problem": problem}
                return json.dumps(state)
            if self._newest is not None and self._underway < _UNDERWAY:
                picture, self._newest = self._newest, None
                self._underway += 1
                results = [picture.results[text] for text in self.prompts if text in picture.results]
                head = json.dumps({**picture.figures, "results": results}).encode()
                return struct.pack(">I", len(head)) + head + picture.jpeg
            self._changed.clear()
            await self._changed.wait()


class Live:
    """Reads the source and segments its newest frame while somebody watches; opens a source again that was lost."""

    def __init__(self, segmenter: Segmenter, source: Source | None, metrics: Metrics, limits: Limits) -> None:
        self.problem: str | None = None
        self.watchers: set[Watcher] = set()
        self._segmenter, self._source, self._metrics, self._limits = segmenter, source, metrics, limits
        self._wanted: tuple[Prompt, ...] | None = None  # None: nobody watches
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lavt_edge live", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """In the event loop that the watchers live in."""
        self._loop = asyncio.get_running_loop()
        if self._source is not None:
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._source is not None:
            self._source.close()
            self._thread.join(timeout=5)

    def join(self, watcher: Watcher) -> None:
        self.watchers.add(watcher)
        self._count()

    def leave(self, watcher: Watcher) -> None:
        self.watchers.discard(watcher)
        self._count()

    async def take_message(self, watcher: Watcher, text: str) -> None:
        """`{"ack": 1}` for a frame that was drawn, or `{"sentences": [...]}`, all that count from now on.

        Raises ValueError for anything else.
        """
        message = strict_json.loads(text)
        if message == {"ack": 1}:
            watcher.acknowledge()
            return
        sentences = message.get("sentences") if isinstance(message, dict) and len(message) == 1 else None
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise ValueError("expected an ack or a list of sentences")
        await self._take_sentences(watcher, list(dict.fromkeys(sentences))[: 2 * self._limits.sentences])

    async def _take_sentences(self, watcher: Watcher, sentences: Sequence[str]) -> None:
        others = {text for other in self.watchers - {watcher} for text in other.prompts}
        prompts: dict[str, Prompt] = {}
        problems: dict[str, str] = {}
        for text in sentences:
            try:
                if len(others | prompts.keys() | {text}) > self._limits.sentences:
                    raise PromptError(f"at most {self._limits.sentences} sentences at once, over all open pages")
                check_sentence(text, self._limits)
                prompts[text] = await asyncio.to_thread(self._segmenter.encode, text)
                if warning := warning_of(prompts[text]):
                    problems[text] = warning
            except Exception as error:
                problems[text] = str(refusal_of(error).detail)
        watcher.prompts, watcher.problems = prompts, problems
        watcher.say_state()
        self._count()

    def _count(self) -> None:
        prompts = {text: prompt for watcher in self.watchers for text, prompt in watcher.prompts.items()}
        self._wanted = tuple(prompts.values()) if self.watchers else None
        self._metrics.values["watchers"] = len(self.watchers)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                assert self._source is not None
                for frame in self._source:
                    if self._stopped.is_set():
                        return
                    if (wanted := self._wanted) is not None:
                        self._post(self._publish, self.picture(frame, wanted))
            except Exception as error:  # of the source, or of a frame: the loop goes on
                self._say(str(refusal_of(error).detail))
                self._open_again()

    def _open_again(self) -> None:
        from .source import Source, SourceError

        assert self._source is not None
        self._source.close()
        while not self._stopped.wait(_RETRY_SECONDS):
            try:
                self._source = Source(self._source.text, as_live=True)
            except SourceError as error:
                self._say(str(error))
            else:
                self._say(None)
                return

    def picture(self, frame: Frame, prompts: tuple[Prompt, ...]) -> Picture:
        """What is sent of a frame, BGR (H, W, 3), reduced if it is large."""
        import cv2

        start = time.perf_counter()
        height, width = frame.shape[:2]
        if (factor := _SHOWN_SIDE / max(height, width)) < 1:
            size = round(width * factor), round(height * factor)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        segmented = self._segmenter.segment(frame, prompts, pixels="bgr") if prompts else []
        model_ms = 1e3 * (time.perf_counter() - start)
        jpeg, results = draw(frame, segmented)
        figures = {"width": frame.shape[1], "height": frame.shape[0], "model_ms": round(model_ms, 1)}
        figures["total_ms"] = round(1e3 * (time.perf_counter() - start), 1)
        return Picture(jpeg, figures, results)

    def _publish(self, picture: Picture) -> None:
        self._metrics.values["frames_total"] += 1
        for watcher in self.watchers:
            if not watcher.offer(picture):
                self._metrics.values["frames_dropped_total"] += 1

    def _say(self, problem: str | None) -> None:
        def tell() -> None:
            self.problem = problem
            for watcher in self.watchers:
                watcher.say_state()

        self._post(tell)

    def _post(self, call: Any, *given: Any) -> None:
        if not self._stopped.is_set():
            self._loop.call_soon_threadsafe(call, *given)


def draw(frame: Frame, segmented: Sequence[Result]) -> tuple[bytes, dict[str, Described]]:
    """A frame, BGR (H, W, 3), as JPEG, and its results described; their scores are of the model's own size."""
    import cv2

    results = {}
    for result in segmented:
        rows, columns = result.logit.shape
        results[result.sentence] = describe(result, replace(result, height=rows, width=columns).score)
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes(), results
