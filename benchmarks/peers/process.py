"""Each side in a process of its own: its threads and memory are its own, and its peak memory can be read off it.

The parent sends one order at a time, and a side answers when its threads sleep again, so only one works at any moment.
Peak memory is the
kernel's high-water mark of the process's resident memory (VmHWM in /proc/PID/status), Python and the runtime's library
included; `before_bytes` is what the process held before it opened the side. Device memory is what nvidia-smi counts
more on the first GPU after the side's first call than before it was opened.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ...errors import LavtError, reason_of
from .opening import open_side
from .sides import Side, SideSpec

Answer = TypeVar("Answer")
_SPAWN = multiprocessing.get_context("spawn")  # a fork would share the parent's pages and break CUDA
_PATIENCE = 5.0
_COMMAND_SECONDS = 10.0
_SETTLE_STEP, _SETTLE_LIMIT, _SETTLED = 0.002, 0.5, 0.05  # seconds, seconds, share of a core


class RemoteSide:
    """A side that runs in another process; opens it at once.

    Attributes: `spec`; `about`, its precision, size [H,W], batch, device, runtime and, of a bundle, file; `warnings` of
    its opening.
    Raises LavtError where it cannot be opened.
    """

    def __init__(self, spec: SideSpec) -> None:
        self.spec = spec
        self._process, self._pipe = _start(_serve, spec)
        try:
            self.about, self.warnings = self._receive()
        except BaseException:
            self.close()
            raise

    def run(self) -> float:
        """Seconds of one call, by the side's own clock. Raises LavtError where the side fails or its process ends."""
        seconds: float = self._ask("run")
        return seconds

    def memory(self) -> dict[str, int | None]:
        """`peak_bytes`, `before_bytes` and `device_bytes` so far; None where the system does not say."""
        answer: dict[str, int | None] = self._ask("memory")
        return answer

    def apply(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """What `function(side, *arguments)` returns in the side's process; all of it must pickle."""
        answer: Answer = self._ask("apply", function, *arguments)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        _end(self._process)

    def __enter__(self) -> RemoteSide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, *order: object) -> Any:
        try:
            self._pipe.send(order)
        except OSError as error:
            raise self._gone() from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            return _unwrap(self._pipe.recv())
        except (EOFError, ConnectionResetError) as error:
            raise self._gone() from error

    def _gone(self) -> LavtError:
        return LavtError(_ended(self.spec.name, self._process))


def run_in_subprocess(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function returns in a process of its own, which takes its memory and libraries with it.

    The function, its arguments and its answer must pickle. Raises LavtError if it does, or if the process ends early.
    """
    process, pipe = _start(_call, function, *arguments)
    try:
        answer: Answer = _unwrap(pipe.recv())
        return answer
    except (EOFError, ConnectionResetError) as error:
        raise LavtError(_ended(function.__name__.replace("_", " ").strip(), process)) from error
    finally:
        pipe.close()
        _end(process)


def _start(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _end(process: BaseProcess) -> None:
    process.join(_PATIENCE)
    for stop in (process.terminate, process.kill):
        if process.is_alive():
            stop()
            process.join(_PATIENCE)
    process.close()


def _ended(name: str, process: BaseProcess) -> str:
    process.join(_PATIENCE)
    code = process.exitcode
    killed = code == -signal.SIGKILL
    return f"{name}: its process ended ({'killed, perhaps for memory' if killed else f'exit code {code}'})"


def _unwrap(answer: tuple[bool, Any]) -> Any:
    fine, value = answer
    if not fine:
        raise LavtError(value)
    return value


def _quiet() -> None:
    """Ctrl-C is the parent's to answer, and standard output its own: libraries here print to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def _attempt(work: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    try:
        return True, work(*arguments)
    except LavtError as error:
        return False, str(error)
    except MemoryError:
        return False, "out of memory"
    except Exception as error:  # what runtimes raise is of many classes, and must reach the parent as a line
        return False, f"{type(error).__name__}: {reason_of(error, 300)}"


def _call(pipe: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    _quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.send(_attempt(function, *arguments))


def _serve(pipe: Connection, spec: SideSpec) -> None:
    """Opens a side and answers orders until the parent closes the pipe."""
    _quiet()
    before, device_before = _status("VmHWM"), device_memory_used()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        fine, side = _attempt(open_side, spec)
    if not fine:
        pipe.send((False, side))
        return
    said = [str(one.message) for one in caught if type(one.message).__module__.startswith(__package__.split(".")[0])]
    pipe.send((True, (_about(side), said)))
    device: list[int | None] = []

    def call() -> float:
        start = time.perf_counter()
        side.run()
        seconds = time.perf_counter() - start
        settle()
        if not device:
            after = device_memory_used() if side.device == "cuda" else None
            device.append(None if after is None or device_before is None else max(0, after - device_before))
        return seconds

    def memory() -> dict[str, int | None]:
        return {"peak_bytes": _status("VmHWM"), "before_bytes": before, "device_bytes": device[0] if device else None}

    answers: dict[str, Callable[..., Any]] = {
        "run": call,
        "memory": memory,
        "apply": lambda function, *arguments: function(side, *arguments),
    }
    while True:
        try:
            order = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_attempt(answers[order[0]], *order[1:]))


def settle() -> None:
    """Waits until this process's threads sleep: pools spin for a while after a call and would slow the next side."""
    deadline = time.perf_counter() + _SETTLE_LIMIT
    while time.perf_counter() < deadline:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(_SETTLE_STEP)
        if time.process_time() - used < _SETTLED * (time.perf_counter() - start):
            return


def _about(side: Side) -> dict[str, Any]:
    return {
        "precision": side.precision,
        "size": list(side.size),
        "batch": side.batch,
        "device": side.device,
        "runtime": side.runtime,
        "file": getattr(side, "file", None),
    }


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
    """What a command prints; None where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None
