"""Which TensorRT this process uses: `tensorrt` (PyPI, JetPack) or `tensorrt_rtx` (for RTX). Decided here alone."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from ...errors import BackendError, reason_of

FLAVORS = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Flavor:
    """An imported TensorRT: its name in FLAVORS, the module, and its version such as "10.3.0"."""

    name: str
    module: ModuleType
    version: str


def find_flavor(name: str | None = None) -> Flavor:
    """The TensorRT to use: the one named, or the first of FLAVORS that can be imported.

    Raises BackendError if the name is unknown or nothing can be imported.
    """
    if name is not None and name not in FLAVORS:
        raise BackendError(f"unknown TensorRT flavor {name!r}: give one of {', '.join(FLAVORS)}")
    problems = []
    for candidate in (name,) if name else FLAVORS:
        try:
            module = importlib.import_module(candidate)
            return Flavor(candidate, module, str(module.__version__))
        except (ImportError, OSError, AttributeError) as error:
            problems.append(f"{candidate}: {reason_of(error, 100)}")
    raise BackendError(
        f"no TensorRT can be imported ({'; '.join(problems)}): pip install tensorrt, or tensorrt-rtx-cu13; "
        "a Jetson's JetPack brings it"
    )
