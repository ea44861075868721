"""Each side in a process of its own: its threads and memory are its own, and its peak memory can be read off it.

The parent sends one order at a time, and a side answers when its threads sleep again, so only one works at any moment.
Peak memory is the kernel's high-water mark of the process's resident memory (VmHWM in /proc/PID/status), Python and the
runtime's library included; `before_bytes` is what the process held before it opened the side. Device memory is what
nvidia-smi counts more on the first GPU after the side's first call than before it was opened.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from ...errors import LavtError, reason_of
from .sides import Side, SideInfo, SideSpec

Answer = TypeVar("Answer")
Worker = TypeVar("Worker", bound="_Worker")
_SPAWN = multiprocessing.get_context("spawn")  # a fork would share the parent's pages and break CUDA
_PATIENCE = 5.0
_COMMAND_SECONDS = 10.0
_SETTLE_STEP, _SETTLE_LIMIT, _SETTLED = 0.002, 0.5, 0.05  # seconds, seconds, share of a core
# Kind to the module and class that open it, and the extra that brings what it needs.
_ADAPTERS: Mapping[str, tuple[str, str, str]] = {
    "bundle": ("onnx", "BundleSide", "cpu"),
    "onnx": ("onnx", "OnnxSide", "cpu"),
    "torch": ("pytorch", "TorchSide", "export"),
    "openvino": ("openvino", "OpenVINOSide", "bench"),
    "tensorrt": ("tensorrt", "TensorRTSide", "trt"),
}


class _Worker:
    """Another process, which calls one function at a time; functions, arguments and answers must pickle."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_answer, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """What the function returns there. Raises LavtError if it fails, or if the process ends."""
        try:
            self._pipe.send((function, arguments))
            succeeded, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(_PATIENCE)
            code = self._process.exitcode
            reason = "killed, perhaps for memory" if code == -signal.SIGKILL else f"exit code {code}"
            raise LavtError(f"{self._name}: its process ended ({reason})") from error
        if not succeeded:
            raise LavtError(answer)
        value: Answer = answer
        return value

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(_PATIENCE)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                stop()
                self._process.join(_PATIENCE)
        self._process.close()

    def __enter__(self: Worker) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteSide(_Worker):
    """A side that runs in another process; opens it at once.

    Attributes: `spec`; `about`, what it is; `warnings` of its opening. Raises LavtError if it cannot be opened.
    """

    def __init__(self, spec: SideSpec) -> None:
        super().__init__(spec.name)
        self.spec = spec
        try:
            self.about, self.warnings = self.call(_open, spec)
        except BaseException:
            self.close()
            raise

    def run(self) -> float:
        """Seconds of one call, by the side's own clock. Raises LavtError if the side fails or its process ends."""
        return self.call(_run)

    def memory(self) -> dict[str, int | None]:
        """`peak_bytes`, `before_bytes` and `device_bytes` so far; None if the system does not say."""
        return self.call(_memory)

    def apply(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """What `function(side, *arguments)` returns in the side's process; all of it must pickle."""
        return self.call(_apply, function, *arguments)


def run_in_subprocess(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function returns in a process of its own, which takes its memory and libraries with it.

    The function, its arguments and its answer must pickle. Raises LavtError if it does, or if the process ends early.
    """
    with _Worker(function.__name__.replace("_", " ").strip()) as worker:
        return worker.call(_call_silently, function, *arguments)


def _answer(pipe: Connection) -> None:
    """Calls what the parent sends until it closes the pipe.

    Ctrl-C is the parent's to answer, and standard output its own: libraries here print to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_attempt(function, *arguments))


def _attempt(function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    try:
        return True, function(*arguments)
    except LavtError as error:
        return False, str(error)
    except MemoryError:
        return False, "out of memory"
    except Exception as error:  # what runtimes raise is of many classes, and must reach the parent as a line
        return False, f"{type(error).__name__}: {reason_of(error, 300)}"


def _call_silently(function: Callable[..., Answer], *arguments: Any) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


class _Opened:
    """The side of this process, and bytes: what the process and the device held before, what the device took."""

    side: Side
    before: int | None
    device_before: int | None
    device: int | None
    has_run = False


def _open(spec: SideSpec) -> tuple[SideInfo, list[str]]:
    _Opened.before, _Opened.device_before, _Opened.device = _status("VmHWM"), device_memory_used(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _Opened.side = side = _adapt(spec)
    package = __package__.split(".")[0]
    ours = [str(warning.message) for warning in caught if warning.category.__module__.startswith(package)]
    return side.about, ours


def _adapt(spec: SideSpec) -> Side:
    module, name, extra = _ADAPTERS[spec.kind]
    try:
        side: Side = getattr(importlib.import_module(f".{module}", __package__), name)(spec)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'lavt-edge[{extra}]'"
        raise LavtError(f"{spec.name}: {error.name} is not installed: {remedy}") from error
    return side


def _run() -> float:
    start = time.perf_counter()
    _Opened.side.run()
    seconds = time.perf_counter() - start
    _settle()
    if not _Opened.has_run and _Opened.side.about.device == "cuda":
        after = device_memory_used()
        if after is not None and _Opened.device_before is not None:
            _Opened.device = max(0, after - _Opened.device_before)
    _Opened.has_run = True
    return seconds


def _memory() -> dict[str, int | None]:
    return {"peak_bytes": _status("VmHWM"), "before_bytes": _Opened.before, "device_bytes": _Opened.device}


def _apply(function: Callable[..., Answer], *arguments: Any) -> Answer:
    return function(_Opened.side, *arguments)


def _settle() -> None:
    """Waits until this process's threads sleep: pools spin for a while after a call and would slow the next side."""
    deadline = time.perf_counter() + _SETTLE_LIMIT
    while time.perf_counter() < deadline:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(_SETTLE_STEP)
        if time.process_time() - used < _SETTLED * (time.perf_counter() - start):
            return


def _status(field: str) -> int | None:
    """A field of /proc/self/status that is in kB, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def device_memory_used() -> int | None:
    """Bytes in use on the first GPU, by all processes; None without nvidia-smi."""
    answer = command_output("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    first = answer.splitlines()[0].strip() if answer else ""
    return int(first) * 2**20 if first.isdigit() else None


def command_output(*command: str) -> str | None:
    """What a command prints; None if there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None
