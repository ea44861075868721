"""A CUDA device and a TensorRT in numpy, stricter than the real ones, for what a machine without a GPU can test.

Work given to a stream is done when it is waited for; memory is checked; a graph of another shape cannot be launched.
The engines compute what `runtime_bundle`'s graphs compute.
"""

# ruff: noqa: N802, N815  (the names are CUDA's)

from __future__ import annotations

import ctypes
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
from lavt_edge.runtime.cuda import CudaDevice
from lavt_edge.runtime.images import prepare, result_of
from lavt_edge.tests.runtime_bundle import CHANNELS, HEIGHT, WIDTH, WORDS, expected_logits, expected_prompt

SUCCESS, OUT_OF_MEMORY, CAPTURE_FAILED = 0, 2, 901
Work = Callable[[], None]


class Stream:
    """A stream; `captured` is None while nothing is captured."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.work: list[Work] = []
        self.captured: list[Work] | None = None
        self.capture_broke = False

    def __int__(self) -> int:
        return self.handle

    def give(self, work: Work) -> None:
        (self.work if self.captured is None else self.captured).append(work)


class SimulatedCuda(ModuleType):
    """`cuda.bindings.runtime` on one device. `live` holds what was made and not given back, `failing` error codes."""

    cudaHostAllocDefault, cudaHostAllocMapped, cudaStreamNonBlocking = 0, 2, 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, integrated: bool = False, name: str = "Simulated GPU", capability: str = "8.7") -> None:
        super().__init__("cuda.bindings.runtime")
        self.integrated, self.gpu, self.capability = integrated, name, capability
        self.calls: Counter[str] = Counter()
        self.failing: dict[str, int] = {}
        self.live: dict[object, object] = {}
        self.copied: list[int] = []
        self.hosts: dict[int, int] = {}
        self._next = 1000

    @contextmanager
    def all_given_back(self) -> Iterator[None]:
        """What is made within it is given back by its end, once what nobody holds is collected."""
        gc.freeze()  # what other tests left: no collection need look through it again
        yield
        gc.collect()
        gc.unfreeze()
        assert not self.live, self.live

    def __getattribute__(self, name: str) -> object:
        """Every call is counted, and fails where `failing` says so."""
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value):
            return value

        def call(*arguments: object) -> tuple[object, ...]:
            self.calls[name] += 1
            if name in self.failing:
                if name == "cudaStreamSynchronize":
                    arguments[0].work.clear()  # type: ignore[attr-defined]  # work that failed is not done later
                return self.failing[name], None
            done = value(*arguments)
            return done if isinstance(done, tuple) else (SUCCESS, done)

        return call

    def stream(self, handle: int) -> Stream:
        return next(one for one in self.live.values() if isinstance(one, Stream) and one.handle == handle)

    def memory(self, address: int, size: int) -> int:
        """The same address, where `size` bytes from it belong to one live allocation."""
        for kept in self.live.values():
            if isinstance(kept, ctypes.Array):
                start = ctypes.addressof(kept)
                if start <= address and address + size <= start + len(kept):
                    return address
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def _allocate(self, size: int, kind: str) -> int:
        block = (ctypes.c_ubyte * size)()
        self.live[kind, ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def described(self) -> CudaDevice:
        """What the driver says of the device."""
        return CudaDevice(self.gpu, self.capability, shares_memory=self.integrated, multiprocessors=8)

    def cudaGetErrorString(self, code: int) -> bytes:
        return {OUT_OF_MEMORY: b"out of memory"}.get(code, b"simulated failure")

    def cudaGetLastError(self) -> None:
        pass

    def cudaMalloc(self, size: int) -> int:
        assert not self.integrated, "memory is shared, a copy on the device is superfluous"
        return self._allocate(size, "device")

    def cudaFree(self, address: int) -> None:
        del self.live["device", address]

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        assert flags == (self.cudaHostAllocMapped if self.integrated else self.cudaHostAllocDefault)
        return self._allocate(size, "host")

    def cudaFreeHost(self, address: int) -> None:
        del self.live["host", address]

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> int:
        assert self.integrated
        return self.memory(address, 1)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: Stream) -> None:
        kinds = ("device", "host") if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else ("host", "device")
        assert (kinds[0], target) in self.live
        assert (kinds[1], source) in self.live
        target, source = self.memory(target, size), self.memory(source, size)
        self.copied.append(size)
        stream.give(lambda: ctypes.memmove(target, source, size) and None)

    def cudaStreamCreateWithFlags(self, flags: int) -> Stream:
        self._next += 1
        self.live["stream", self._next] = stream = Stream(self._next)
        return stream

    def cudaStreamDestroy(self, stream: Stream) -> None:
        del self.live["stream", stream.handle]

    def cudaStreamSynchronize(self, stream: Stream) -> None:
        assert stream.captured is None
        assert stream.handle == self.stream(stream.handle).handle
        while stream.work:
            stream.work.pop(0)()

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> None:
        stream.captured, stream.capture_broke = [], False

    def cudaStreamEndCapture(self, stream: Stream) -> object:
        captured, stream.captured = stream.captured, None
        if stream.capture_broke:
            return CAPTURE_FAILED, None
        self.live["graph", id(captured)] = captured
        return captured

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[str, int]:
        self._next += 1
        self.live["executable", self._next] = list(graph)
        return SUCCESS, ("executable", self._next)  # type: ignore[return-value]

    def cudaGraphDestroy(self, graph: list[Work]) -> None:
        del self.live["graph", id(graph)]

    def cudaGraphLaunch(self, executable: tuple[str, int], stream: Stream) -> None:
        for work in self.live[executable]:  # type: ignore[attr-defined]
            stream.give(work)

    def cudaGraphExecDestroy(self, executable: tuple[str, int]) -> None:
        del self.live[executable]


SHAPES: dict[str, dict[str, tuple[str, tuple[int, ...], bool]]] = {
    "text_encoder": {
        "input_ids": ("INT64", (WORDS,), True),
        "attention_mask": ("INT64", (WORDS,), True),
        "prompt": ("FLOAT", (WORDS, CHANNELS), False),
    },
    "segmenter": {
        "image": ("UINT8", (HEIGHT, WIDTH, 3), True),
        "prompt": ("FLOAT", (WORDS, CHANNELS), True),
        "word_mask": ("FLOAT", (WORDS,), True),
        "logits": ("FLOAT", (2, HEIGHT, WIDTH), False),
        "mask": ("UINT8", (HEIGHT, WIDTH), False),
    },
    # The frame and the mask themselves are of a camera's size.
    "frame": {"image": ("UINT8", (HEIGHT, WIDTH, 3), False)},
    "mask": {"logits": ("FLOAT", (2, HEIGHT, WIDTH), True), "logit": ("FLOAT", (HEIGHT, WIDTH), False)},
}
_NUMPY = {"INT64": np.int64, "FLOAT": np.float32, "UINT8": np.uint8}


def plan(role: str, batch: int | None, max_batch: int = 1, version: str = "10.3.0", **extra: object) -> bytes:
    """The bytes of a simulated engine, with the header that TensorRT's plans have."""
    head = b"ftrt" + bytes(20) + bytes(map(int, version.split("."))) + bytes(37)
    return head[:64] + json.dumps({"role": role, "batch": batch, "max_batch": max_batch, **extra}).encode()


class SimulatedTensorRT(ModuleType):
    """`tensorrt`, whose engines run on a SimulatedCuda. `capturable`: whether enqueueing can be captured."""

    def __init__(self, cuda: SimulatedCuda, version: str = "10.3.0") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.cuda, self.capturable = cuda, True
        self.deserialised: list[bytes] = []
        module = self

        class ILogger:
            pass

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
                module.deserialised.append(data)
                try:
                    fields = json.loads(data[64:])
                except ValueError:
                    self.logger.log(SimpleNamespace(name="ERROR"), "the plan\nis damaged")  # type: ignore[attr-defined]
                    return None
                return Engine(module, **fields)

        self.ILogger, self.Runtime = ILogger, Runtime
        self.validity: list[object] = [SimpleNamespace(), 0]

    def make_context(self, engine: Engine) -> Context:
        return Context(engine)

    def become_rtx(self) -> None:
        """What TensorRT for RTX has besides: its own CUDA graphs, and a judgement of engines, set by `validity`."""
        self.__name__ = "tensorrt_rtx"
        self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        self.EngineValidity = SimpleNamespace(VALID="valid", SUBOPTIMAL="suboptimal", INVALID="invalid")
        self.EngineInvalidityDiagnostics = SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2})
        self.validity = ["valid", 0]
        self.Runtime.get_engine_validity = lambda runtime, data: tuple(self.validity)  # type: ignore[attr-defined]


class Engine:
    """A simulated engine; `live` on its device as long as it exists, like its context."""

    def __init__(
        self,
        module: SimulatedTensorRT,
        role: str,
        batch: int | None,
        max_batch: int,
        pixels: str = "rgb",
        **extra: object,
    ) -> None:
        self.module, self.role, self.batch, self.pixels = module, role, batch, pixels
        self.max_batch = max_batch if batch is None else batch
        self.tensors = SHAPES[role] | {name: tuple(value) for name, value in extra.items()}  # type: ignore[arg-type]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INPUT" if self.tensors[name][2] else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1 if self.batch is None else self.batch, *self.tensors[name][1])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return [(rows, *self.tensors[name][1]) for rows in (1, 1, self.max_batch)]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig | None = None) -> Context:
        self.strategy = None if config is None else config.cuda_graph_strategy
        if config is not None and config.cache is not None:
            config.cache.compile(self.role)
        return self.module.make_context(self)


class RuntimeConfig:
    """Of TensorRT for RTX: its CUDA graphs and its cache of kernels."""

    cuda_graph_strategy: str | None = None
    cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Kernels by role; `compiled` counts those of all caches that no cache held."""

    compiled = 0
    magic = b"kernels of this GPU:"

    def __init__(self) -> None:
        self.kernels: list[bytes] = []

    def compile(self, role: str) -> None:
        if role.encode() not in self.kernels:
            RuntimeCache.compiled += 1
            self.kernels.append(role.encode())

    def serialize(self) -> bytes:
        return self.magic + b",".join(self.kernels)

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(self.magic):
            return False
        self.kernels = blob.removeprefix(self.magic).split(b",")
        return True


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.cuda = engine, engine.module.cuda
        self.key = ("context", id(self))
        self.cuda.live[self.key] = None
        self.addresses: dict[str, int] = {}
        self.rows = engine.batch or 0
        self.enqueued = 0

    def __del__(self) -> None:
        del self.cuda.live[self.key]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows, self.enqueued = shape[0], 0
        return 1 <= shape[0] <= self.engine.max_batch and shape[1:] == self.engine.tensors[name][1]

    def execute_async_v3(self, handle: int) -> bool:
        stream, rows = self.cuda.stream(handle), self.rows
        if stream.captured is not None and (not self.enqueued or not self.engine.module.capturable):
            stream.capture_broke = True  # the first call after a change of shape allocates
            return False

        def work() -> None:
            assert self.rows == rows, "a graph was launched that was captured for another shape"
            self._compute(rows)

        self.enqueued += stream.captured is None
        stream.give(work)
        return True

    def _array(self, name: str, rows: int) -> np.ndarray:
        kind, shape, _ = self.engine.tensors[name]
        size = rows * int(np.prod(shape)) * np.dtype(_NUMPY[kind]).itemsize
        memory = (ctypes.c_ubyte * size).from_address(self.cuda.memory(self.addresses[name], size))
        return np.frombuffer(memory, _NUMPY[kind]).reshape(rows, *shape)

    def _compute(self, rows: int) -> None:
        self.cuda.calls["compute"] += 1
        arrays = {name: self._array(name, rows) for name in self.engine.tensors}
        for row in range(rows):
            if self.engine.role == "text_encoder":
                arrays["prompt"][row] = expected_prompt(arrays["input_ids"][row], arrays["attention_mask"][row])
            elif self.engine.role == "frame":
                arrays["image"][row] = prepare(arrays["frame"][row], HEIGHT, WIDTH, pixels=self.engine.pixels).pixels
            elif self.engine.role == "mask":
                result = result_of(arrays["logits"][row], "", arrays["mask"].shape[1:])
                arrays["logit"][row], arrays["mask"][row] = result.logit, result.mask
            else:
                logits = expected_logits(*(arrays[name][row] for name in ("image", "prompt", "word_mask")))
                arrays["logits"][row], arrays["mask"][row] = logits, logits.argmax(0)
