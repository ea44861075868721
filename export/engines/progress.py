"""A build's progress from TensorRT's phases, and work in a thread that Ctrl-C can stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

Progress = Callable[[str, float], None]
_Result = TypeVar("_Result")
_REFRESH_SECONDS = 0.1


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


class Phases:
    """TensorRT's nested phases as one bar. Told by any thread, in the order of `IProgressMonitor`'s calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: list[_Phase] = []  # each within the one before it
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._path[self._depth(parent) :] = [_Phase(name, max(steps, 1))]

    def step(self, name: str, step: int) -> None:
        """`step`, counted from 0, is done."""
        with self._lock:
            depth = self._depth(name)
            if depth:
                phase = self._path[depth - 1]
                phase.done = min(max(phase.done, step + 1), phase.steps)
                share = 0.0
                for phase in reversed(self._path):
                    share = min(1.0, (phase.done + share) / phase.steps)
                self._share = max(self._share, share)

    def finish(self, name: str) -> None:
        with self._lock:
            depth = self._depth(name)
            if depth:
                del self._path[depth - 1 :]

    def now(self) -> tuple[str, float]:
        """The deepest phase under way, and the share that is done, 0 to 1, which never falls."""
        with self._lock:
            return (self._path[-1].name if self._path else ""), self._share

    def _depth(self, name: str | None) -> int:
        """How deep the innermost phase of this name is, from 1; 0 if there is none."""
        return max((depth for depth, phase in enumerate(self._path, 1) if phase.name == name), default=0)


def make_monitor(module: ModuleType, phases: Phases, stop: threading.Event) -> Any:
    """An IProgressMonitor that tells `phases`, and cancels the build at its next step once `stop` is set."""

    class Monitor(module.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def run_stoppable(work: Callable[[], _Result], stop: threading.Event, refresh: Callable[[], None]) -> _Result:
    """`work()` in a thread, so that this one can draw progress and hear signals, which C++ code would hold up.

    KeyboardInterrupt and SystemExit set `stop` and are raised once `work` has come back.
    """
    # The pool's thread is no daemon: the interpreter must not end while C++ code may call back into it.
    with ThreadPoolExecutor(1, "engine-build") as pool:
        future = pool.submit(work)
        try:
            while not wait([future], _REFRESH_SECONDS).done:
                refresh()
        except BaseException:
            stop.set()
            wait([future])  # not the pool's join: a signal may make it take a running thread for ended
            raise
        return future.result()
