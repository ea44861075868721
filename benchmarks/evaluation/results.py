"""The results of an evaluation as JSON lines, written as it goes, so that one that was stopped can go on.

The first line describes the run: the model's and the data's hashes, data set, split. Then one line for each sentence,
in the order of the split:

    {"sentence_id": 3, "ref_id": 2, "intersection": 812, "union": 1040, "iou": 0.7807692307692308, "kind": "ordinal"}

Pixels are counted at the model's input size; "kind" stands there for generated data only, "predicted" and "no_target"
for gRefCOCO only: the figures of one are made of these, and "iou" is that of the two masks as they are.
The file of a shard (see `Shard`) has the lines of its own sentences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..._base import strict_json
from ..._base.files import locked
from ..._base.records import OPTIONAL, from_plain, to_plain
from ...data.sentences import Sentence
from ...errors import LavtError
from .predictors import ModelRecord

FORMAT_VERSION = 1
FIRST_KEY = "lavt_bench"
_MARK = f'{{"{FIRST_KEY}":'.encode()
MAX_LINE = 2**16


@dataclass(frozen=True)
class Shard:
    """One of the parts, `number` of `of`, counted from 1, into which the first `sentences` of a split are divided.

    `name` and `is_demo` are the predictor's, for whoever merges the shards without it.
    """

    number: int
    of: int
    sentences: int
    name: str
    is_demo: bool

    def part(self, batch: int) -> slice:
        """Its sentences: whole batches, so that each is computed beside the same ones as in a run that is not divided.

        Raises LavtError if there are fewer batches than shards.
        """
        batches = -(-self.sentences // batch)
        if not 1 <= self.number <= self.of <= batches:
            raise LavtError(f"shard {self.number}/{self.of}: give K/N, K from 1 to N, N up to {batches} batches")
        first, end = (batches * number // self.of * batch for number in (self.number - 1, self.number))
        return slice(first, min(end, self.sentences))


@dataclass(frozen=True)
class Run:
    """The first line: the model, its input's size, images per call, and of the split what `Split.describe` says."""

    model: ModelRecord
    input: tuple[int, int]
    batch: int
    dataset: str
    split_by: str | None
    split: str
    swap: bool
    sentences: int
    files: Mapping[str, str]
    shard: Shard | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class SentenceResult:
    """A line: pixels in both masks and in either, at the model's input size."""

    sentence_id: int
    ref_id: int
    intersection: int
    union: int
    iou: float
    kind: str | None = field(default=None, metadata=OPTIONAL)
    predicted: int | None = field(default=None, metadata=OPTIONAL)
    """Pixels of the prediction."""
    no_target: bool | None = field(default=None, metadata=OPTIONAL)


def _iou(intersection: int, union: int) -> float:
    return intersection / union if union else 0.0


def _result_of(sentence: Sentence, intersection: int, union: int, predicted: int) -> SentenceResult:
    target, iou = sentence.target, _iou(intersection, union)
    result = SentenceResult(sentence.sentence_id, target.ref_id, intersection, union, iou, sentence.kind)
    return result if target.others is None else replace(result, predicted=predicted, no_target=target.no_target)


def parse_result(line: bytes) -> SentenceResult | None:
    """A line's result; None if the line is damaged."""
    try:
        result = from_plain(SentenceResult, strict_json.loads(line))
    except ValueError:
        return None
    predicted = result.intersection if result.predicted is None else result.predicted
    sound = 0 <= result.intersection <= predicted <= result.union
    return result if sound and result.iou == _iou(result.intersection, result.union) else None


class ResultsFile:
    """An open results file, see `open_results`; `results` holds those of each sentence that is done."""

    def __init__(self, path: Path, file: BinaryIO, header: bytes, sentences: Sequence[Sentence], restart: bool) -> None:
        self.path = path
        self.results: list[SentenceResult] = []
        self._sentences = sentences
        self._file = file
        try:
            self._begin(header, restart)
        except OSError as error:
            raise unusable(path, error) from error

    def append(self, intersection: int, union: int, predicted: int) -> None:
        """Writes the next sentence's line, and hands it to the system before it returns."""
        result = _result_of(self._sentences[len(self.results)], intersection, union, predicted)
        try:
            self._file.write(as_line(to_plain(result)))
            self._file.flush()
        except OSError as error:
            raise unusable(self.path, error) from error
        self.results.append(result)

    def _begin(self, header: bytes, restart: bool) -> None:
        first = self._file.readline(MAX_LINE)
        if not first.startswith(_MARK[: len(first)]):
            raise LavtError(f"{self.path}: not a results file of lavt-bench; name another one with --results")
        torn = not first.endswith(b"\n") and header.startswith(first)
        if restart or torn:
            self._cut(0)
            self._file.write(header)
            self._file.flush()
            return
        if first != header:
            raise LavtError(
                f"{self.path}: of another run ({difference(first, header)}); "
                "name another file with --results, or begin it again with --restart"
            )
        self._read()

    def _read(self) -> None:
        end = self._file.tell()
        for line in iter(lambda: self._file.readline(MAX_LINE), b""):
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                self._cut(end)
                return
            result = parse_result(line)
            if result is None or not self._is_next(result):
                raise LavtError(
                    f"{self.path}: line {len(self.results) + 2} is damaged, or not of the sentence that comes there; "
                    "begin it again with --restart"
                )
            self.results.append(result)
            end += len(line)

    def _is_next(self, result: SentenceResult) -> bool:
        if len(self.results) == len(self._sentences):
            return False
        sentence = self._sentences[len(self.results)]
        return result == _result_of(sentence, result.intersection, result.union, result.predicted or 0)

    def _cut(self, end: int) -> None:
        self._file.seek(end)
        self._file.truncate()


@contextmanager
def open_results(
    path: Path, run: Run, sentences: Sequence[Sentence], *, restart: bool = False
) -> Iterator[ResultsFile]:
    """The results file of a run, or of a shard of it.

    An existing file goes on if its first line equals this run's; a last line that was cut off is dropped. `restart`
    begins again instead. Raises LavtError if the file is of another run, damaged, in use, or cannot be written.
    """
    header = as_line({FIRST_KEY: FORMAT_VERSION, **to_plain(run)})
    with open_locked(path) as file:
        yield ResultsFile(path, file, header, sentences, restart)


@contextmanager
def open_locked(path: Path) -> Iterator[BinaryIO]:
    """The file for reading and writing, made if there is none, and locked against a second run. Raises LavtError."""
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = held.enter_context(locked(path, os.O_RDWR | os.O_CREAT))
        except BlockingIOError:
            raise LavtError(
                f"{path}: another run is writing it; wait for it, or name another file with --results"
            ) from None
        except (OSError, ValueError) as error:
            raise unusable(path, error) from error
        yield held.enter_context(os.fdopen(descriptor, "r+b", closefd=False))


def unusable(path: Path, error: Exception) -> LavtError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return LavtError(f"{path}: cannot be written ({reason}); name another file with --results")


def as_line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def difference(first: bytes, header: bytes) -> str:
    """The first thing in which two headers differ, in words."""
    try:
        there = dict(_leaves(strict_json.loads(first)))
    except (ValueError, RecursionError):
        return "its first line is damaged"
    for name, value in _leaves(json.loads(header)):
        if name not in there:
            return f"it does not say {name}"
        if there[name] != value:
            return f"{name} is {_short(there[name])} there and {_short(value)} here"
    return "it says more than this version does"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
