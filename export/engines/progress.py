"""A build's progress from TensorRT's phases, and work in a thread that Ctrl-C can stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
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
    children: list[_Phase] = field(default_factory=list)


class Phases:
    """TensorRT's nested phases as one bar. Told by any thread, in the order of `IProgressMonitor`'s calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._roots: list[_Phase] = []
        self._most = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            found = self._find(parent, self._roots) if parent else None
            (self._roots if found is None else found.children).append(_Phase(name, max(steps, 1)))

    def step(self, name: str, step: int) -> None:
        """`step`, counted from 0, is done."""
        with self._lock:
            phase = self._find(name, self._roots)
            if phase is not None:
                phase.done = min(max(phase.done, step + 1), phase.steps)
                self._advance()

    def finish(self, name: str) -> None:
        with self._lock:
            self._remove(name, self._roots)

    def now(self) -> tuple[str, float]:
        """The deepest phase under way, and the share that is done, 0 to 1, which never falls."""
        with self._lock:
            path = self._path()
            return (path[-1].name if path else ""), self._most

    def _path(self) -> list[_Phase]:
        path, phases = [], self._roots
        while phases:
            path.append(phases[-1])
            phases = phases[-1].children
        return path

    def _advance(self) -> None:
        share = 0.0
        for phase in reversed(self._path()):
            share = min(1.0, (phase.done + share) / phase.steps)
        self._most = max(self._most, share)

    def _find(self, name: str, phases: list[_Phase]) -> _Phase | None:
        for phase in reversed(phases):
            found = self._find(name, phase.children) or (phase if phase.name == name else None)
            if found is not None:
                return found
        return None

    def _remove(self, name: str, phases: list[_Phase]) -> bool:
        for i in reversed(range(len(phases))):
            if self._remove(name, phases[i].children):
                return True
            if phases[i].name == name:
                del phases[i]
                return True
        return False


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
    results: list[_Result] = []
    errors: list[BaseException] = []
    done = threading.Event()  # Thread.join that a signal interrupts may take a running thread for ended

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    # No daemon: the interpreter must not end while C++ code may call back into it.
    threading.Thread(target=target, name="engine-build").start()
    try:
        while not done.wait(_REFRESH_SECONDS):
            refresh()
    except BaseException:
        stop.set()
        done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]
