"""An engine on a CUDA device. What can be decided without one is in `record` and `buffers`."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._base.callers import warn_caller
from ...errors import BackendError
from ..bundle import Bundle
from .buffers import validate_feeds
from .cuda import Cuda, DeviceResources
from .flavor import Flavor, find_flavor
from .loading import KernelCache, create_context, deserialise, last_error, logger_of, plan_of, refused
from .record import (
    DISPLAY_NAMES,
    EngineRecord,
    PowerModeWarning,
    check_header,
    device_misfit,
    flavor_misfit,
    power_mode_misfit,
)

_LOGGER = logging.getLogger("lavt_edge")
_Array = npt.NDArray[Any]


@dataclass(eq=False)
class _Turn:
    """What the engines of one stream share: whose turn it is, the read-only arrays that their inputs hold, and the run
    that the stream is at, if somebody still waits for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    resident: dict[str, _Array] = field(default_factory=dict)
    running: weakref.ref[_Run] | None = None

    def running_now(self) -> _Run | None:
        """None also if nobody waits for it any more."""
        return None if self.running is None else self.running()


class _Run:
    """A run that was enqueued. Called, it waits for it and gives its outputs, or raises what it failed with."""

    def __init__(self, finish: Callable[[], list[_Array]], turn: _Turn) -> None:
        self._finish, self._turn = finish, turn
        self._outputs: list[_Array] | BackendError | None = None

    def __call__(self) -> list[_Array]:
        with self._turn.lock:
            self.settle()
        assert self._outputs is not None
        if isinstance(self._outputs, BackendError):
            raise self._outputs
        return self._outputs

    def settle(self) -> None:
        """Waits, once; the lock is held by the caller, who may be another that wants the buffers."""
        if self._outputs is None:
            try:
                self._outputs = self._finish()
            except BackendError as error:
                self._outputs = error
            self._turn.running = None


class TensorRTBackend:
    """An engine, its buffers and its stream; implements `Backend`.

    Buffers are allocated once. Calls from several threads take turns. The first call of a batch size enqueues, the
    second captures a CUDA graph, which the next ones launch; if that fails they go on enqueueing, with a log line.
    TensorRT for RTX captures by itself. An input that is the read-only array of the call before is not copied again.
    What was started and not yet waited for is finished before the next call touches the buffers.

    Args:
        data: the engine file's bytes, checked by SHA-256 and header.
        record: what the manifest says of it.
        flavor: the TensorRT to run it with.
        cuda: the device.
        kernels: where TensorRT for RTX keeps the kernels that it compiles for this GPU (None: nowhere).
        cuda_graphs: whether to use CUDA graphs.
        beside: a backend whose stream and turns it shares, and whose buffers of the inputs and outputs in `linked`.

    Raises:
        BackendError: TensorRT refuses the engine, or the device has too little memory.
    """

    device = "cuda"

    def __init__(
        self,
        data: bytes,
        record: EngineRecord,
        flavor: Flavor,
        cuda: Cuda,
        kernels: Path | None = None,
        *,
        cuda_graphs: bool = True,
        beside: TensorRTBackend | None = None,
        linked: Sequence[str] = (),
    ) -> None:
        self.name = f"{DISPLAY_NAMES[flavor.name]} {flavor.version}"
        self._logger = logger_of(flavor.module)
        self._file = record.name
        self._turn: _Turn = _Turn() if beside is None else beside._turn
        self._batch = self._changes = 0
        self._runs = 0
        self._saved: set[int] = set()  # the batch sizes whose kernels are kept
        self._held = held = DeviceResources(cuda, mapped=cuda.device().shares_memory)
        self._close = weakref.finalize(self, held.free)
        try:
            held.runtime, held.engine = deserialise(data, record, flavor)
            self._plan = plan_of(held.engine, record)
            self._kernels = KernelCache(kernels)
            context = create_context(held.engine, flavor.module, cuda_graphs, self._kernels)
            if context is None:
                raise refused(record, flavor, "could not prepare")
            self._capture = cuda_graphs and not hasattr(flavor.module, "CudaGraphStrategy")
            if beside is not None:
                beside._held.guests.append(held)
                held.stream = beside._held.stream
                held.buffers = {name: beside._held.buffers[name] for name in linked}
            held.allocate(self._plan, context)
        except BaseException:
            self._close()
            raise
        self.signature = self._plan.signature
        self.max_batch = self._plan.max_batch if self._plan.dynamic else None  # larger ones run in pieces
        _LOGGER.info("%s runs on cuda (%s)", record.name, self.name)

    def run(self, feeds: Mapping[str, _Array], outputs: Sequence[str]) -> list[_Array]:
        """The named outputs for these inputs. Raises BackendError if the engine cannot be run on them."""
        return self.start(feeds, outputs)()

    def start(self, feeds: Mapping[str, _Array], outputs: Sequence[str]) -> Callable[[], list[_Array]]:
        """`run`, which goes on by itself: what is returned waits for the outputs. Raises as `run` does, as does that.

        Inputs are copied before it returns. Of a batch in pieces all but the last are waited for.
        """
        with self._in_turn():
            rows, most = validate_feeds(self._plan, feeds, outputs), self._plan.max_batch
            *pieces, last = [slice(start, min(start + most, rows)) for start in range(0, rows, most)]
            parts = [self._enqueue_piece(feeds, piece, outputs)() for piece in pieces]
            wait = self._enqueue_piece(feeds, last, outputs)

            def finish() -> list[_Array]:
                with self._failing():
                    parts.append(wait())
                    if self._batch not in self._saved:  # kernels are compiled when a batch size first needs them
                        self._saved.add(self._batch)
                        self._save_kernels()
                if len(parts) == 1:
                    return parts[0]
                return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

            run = _Run(finish, self._turn)
            self._turn.running = weakref.ref(run)
        return run

    def run_in_steps(
        self, feeds: Mapping[str, _Array], outputs: Sequence[str]
    ) -> tuple[list[_Array], dict[str, float]]:
        """`run` of at most `max_batch` rows, each step waited for, and its seconds: "copy_in", "image", "copy_out"."""
        seconds: dict[str, float] = {}

        def passed(step: str) -> None:
            self._held.synchronize()
            seconds[step] = time.perf_counter() - start - sum(seconds.values())

        with self._in_turn():
            rows = validate_feeds(self._plan, feeds, outputs)
            start = time.perf_counter()
            arrays = self._enqueue_piece(feeds, slice(0, rows), outputs, passed)()
            passed("copy_out")
        return arrays, seconds

    def close(self) -> None:
        """Free the device, after the call under way in another thread. May be called twice."""
        with self._turn.lock:
            run = self._turn.running_now()
            if run is not None:
                run.settle()
            self._turn.resident.clear()
            self._close()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Holds the lock, after the run that the stream is at."""
        with self._turn.lock:
            if self._held.stream is None:
                raise BackendError(f"{self._file} is closed: load it again")
            with self._failing():
                self._held.cuda.use()
                self._settle()
                yield

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Nothing on the device counts after a failure, which is told with the file's name."""
        try:
            yield
        except (BackendError, ValueError) as error:
            self._turn.resident.clear()
            raise BackendError(f"{self._file} could not run: {error}") from error

    def _settle(self) -> None:
        """Waits for the run that the stream is at, and keeps its outputs if somebody still wants them."""
        run = self._turn.running_now()
        if run is not None:
            run.settle()
        elif self._turn.running is not None:
            self._turn.running = None
            self._held.synchronize()

    def _enqueue_piece(
        self,
        feeds: Mapping[str, _Array],
        part: slice,
        outputs: Sequence[str],
        passed: Callable[[str], None] = lambda step: None,
    ) -> Callable[[], list[_Array]]:
        """Gives a part of a batch to the stream; what is returned waits, and gives the outputs."""
        batch, held = part.stop - part.start, self._held
        try:
            self._set_batch(batch)
            for spec in self._plan.signature.inputs:
                self._send(spec.name, feeds[spec.name], part)
            passed("copy_in")
            self._execute()
            passed("image")
            wanted = [held.buffers[name] for name in outputs]
            for buffer in wanted:
                held.download(buffer, batch)
        except BaseException:
            held.synchronize()  # the buffers must be idle, whatever happened
            raise

        def wait() -> list[_Array]:
            held.cuda.use()
            held.synchronize()
            return [buffer.array[:batch].copy() for buffer in wanted]

        return wait

    def _set_batch(self, batch: int) -> None:
        """Shapes of the context; a captured graph is for one shape and one state of the context."""
        if batch == self._batch:
            return
        self._batch, self._runs = 0, 0
        self._changes += 1
        self._turn.resident.clear()
        self._held.drop_graph()
        if self._plan.dynamic:
            for spec in self._plan.signature.inputs:
                if not self._held.context.set_input_shape(spec.name, spec.at(batch)):
                    raise BackendError(f"TensorRT refused the shape {spec.at(batch)} of {spec.name}")
        self._batch = batch

    def _send(self, name: str, array: _Array, part: slice) -> None:
        if self._turn.resident.get(name) is array:
            return
        self._turn.resident.pop(name, None)
        buffer = self._held.buffers[name]
        np.copyto(buffer.array[: self._batch], array[part])
        self._held.upload(buffer, self._batch)
        # Read-only and not a view of another array: it cannot change.
        if len(array) == self._batch and array.flags.owndata and not array.flags.writeable:
            self._turn.resident[name] = array

    def _execute(self) -> None:
        held = self._held
        if held.graph is None and self._capture and self._runs:
            try:
                held.graph = held.cuda.capture(held.stream, self._enqueue)
            except BackendError as error:
                self._capture = False
                _LOGGER.warning("%s runs without a CUDA graph: %s", self._file, str(error))
        if held.graph is not None:
            held.cuda.call("cudaGraphLaunch", held.graph, held.stream)
        elif not self._enqueue():
            raise BackendError(f"TensorRT could not enqueue it{last_error(self._logger)}")
        self._runs += 1

    def _save_kernels(self) -> None:
        self._kernels.save()

    def _enqueue(self) -> bool:
        return bool(self._held.context.execute_async_v3(int(self._held.stream)))


def load_engine(bundle: Bundle, record: EngineRecord, *, cuda_graphs: bool = True) -> TensorRTBackend:
    """Run an engine of the bundle on the first CUDA device; every check comes before anything is deserialised.

    Warns of one that was built in another power mode.

    Raises:
        BundleError: the file is damaged or foreign; the line has the command that rebuilds it.
        BackendError: it was built for another TensorRT or another GPU, or there is no TensorRT, CUDA device or memory.
    """
    return TensorRTBackend(*checked_engine(bundle, record), cuda_graphs=cuda_graphs)


def checked_engine(bundle: Bundle, record: EngineRecord) -> tuple[bytes, EngineRecord, Flavor, Cuda, Path]:
    """What a backend is made of, after every check of `load_engine`, which says what it raises and warns of."""
    data = bundle.engine_bytes(record.name, record.rebuild)
    check_header(data, record, bundle.root / record.name)
    flavor = _flavor_for(record)
    if misfit := flavor_misfit(record, flavor.name, flavor.version):
        raise BackendError(misfit)
    cuda = Cuda()
    device = cuda.device()
    if misfit := device_misfit(record, device):
        raise BackendError(misfit)
    if gated := power_mode_misfit(record, device):
        warn_caller(gated, PowerModeWarning, __package__.rpartition(".")[0])
    return data, record, flavor, cuda, bundle.root / f"{record.name}.kernels"


def _flavor_for(record: EngineRecord) -> Flavor:
    """The engine's flavour, or if that is missing the one that is here, to be named as the difference."""
    try:
        return find_flavor(record.flavor)
    except BackendError:
        try:
            return find_flavor()
        except BackendError as error:
            raise BackendError(f"{record.name} needs {DISPLAY_NAMES[record.flavor]}: {error}") from None
