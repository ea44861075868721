"""How every command ends: whatever is raised within becomes one line on stderr and a code of `errors.ExitCode`."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from ..errors import ExitCode, LavtError, one_line

if TYPE_CHECKING:
    import typer

TRACEBACK = "LAVT_EDGE_TRACEBACK"

_REMEDIES = {
    errno.ENOSPC: "free some space, or name a place on another disk",
    errno.EDQUOT: "free some space, or name a place on another disk",
    errno.EFBIG: "the limit on a file's size is in the way, see ulimit -f",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "see who may read and write it, or name another place",
    errno.EPERM: "see who may read and write it, or name another place",
    errno.EMFILE: "raise the limit on open files, see ulimit -n",
    errno.ENFILE: "the machine has too many open files, end what holds them",
    errno.ENOMEM: "end what else takes memory",
    errno.ENAMETOOLONG: "give a shorter name",
}
# Torch and ONNX Runtime say in words what Python says with MemoryError.
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "bad allocation", "out of memory")
# The last resort, where no `needs` says which extra it is: packages that one extra alone brings.
_EXTRAS = {
    "export": ("torch", "timm", "transformers", "safetensors", "onnx", "onnxscript", "onnx_ir"),
    "cpu": ("onnxruntime",),
    "data": ("pycocotools",),
    "camera": ("cv2",),
    "serve": ("starlette", "uvicorn", "websockets", "python_multipart"),
    "bench": ("openvino",),
    "jetson": ("cuda",),
    "trt": ("tensorrt",),
    "rtx": ("tensorrt_rtx",),
    "test": ("modelopt", "torchvision"),
}


def run_main(body: Callable[[], object]) -> NoReturn:
    """Runs a program's body and ends the process: with 0, or one line on stderr and a code of `errors.ExitCode`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A polite kill unwinds like Ctrl-C does, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    with exit_codes():
        body()
    sys.exit(ExitCode.DONE)


def run_typer(app: typer.Typer) -> NoReturn:
    """`run_main` for a typer app, which goes on saying what is wrong with a command line itself."""
    import typer

    command = typer.main.get_command(app)
    invoke = command.invoke
    usage_error = typer.BadParameter.__mro__[1]

    def guarded(context: typer.Context) -> object:
        # Typer would take Ctrl-C, a closed pipe and EOFError for itself, each with a code of its own.
        with exit_codes(typer.Exit, typer.Abort, usage_error):
            return invoke(context)

    command.invoke = guarded  # type: ignore[method-assign, assignment]
    run_main(command)


@contextmanager
def exit_codes(*passing: type[BaseException]) -> Iterator[None]:
    """Turns what is raised within, but for SystemExit and `passing`, into its line and a SystemExit with its code."""
    allowed: tuple[type[BaseException], ...] = (SystemExit, *passing)
    try:
        try:
            yield
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # rich ends the process itself, with 1
                raise stop.__context__ from None
            _flush()
            raise
        _flush()
    except allowed:
        raise
    except BaseException as error:
        code, line = describe(error)
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            with suppress(OSError):
                traceback.print_exception(error)
        if line is not None:
            _say(line)
        _give_up_stdout()
        raise SystemExit(code) from error


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turns a package that is missing or broken within into a LavtError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        reason = _missing(error, extra)
        if reason is None:
            raise
        raise LavtError(reason) from error


def describe(error: BaseException) -> tuple[ExitCode, str | None]:
    """The exit code for an exception, and what to print; None: nothing."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted"
    if isinstance(error, BrokenPipeError):
        return ExitCode.PIPE_CLOSED, None
    if isinstance(error, LavtError):
        return ExitCode.REFUSED, f"error: {error}"
    for reason in (_no_memory(error), _missing(error), _system(error)):
        if reason is not None:
            return ExitCode.REFUSED, f"error: {reason}"
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    again = f"run it again with {TRACEBACK}=1 and report what it prints"
    return ExitCode.BUG, f"error: this is a bug in lavt-edge ({what[:500]}); {again}"


def _no_memory(error: BaseException) -> str | None:
    in_words = isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _NO_MEMORY)
    if in_words or isinstance(error, MemoryError):
        return "out of memory; end what else takes memory, or make the image, the batch or the model smaller"
    return None


def _missing(error: BaseException, extra: str | None = None) -> str | None:
    """The line for a package that is missing or broken; a module of lavt-edge's own would be a bug."""
    if not isinstance(error, ImportError):
        return None
    package = (error.name or "").split(".")[0]
    if package in ("", "lavt_edge", *sys.stdlib_module_names):
        return None
    extra = extra or next((name for name, packages in _EXTRAS.items() if package in packages), None)
    what = package if extra is None else f"lavt-edge[{extra}]"
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install '{what}'"
    return f"{package} cannot be imported ({error}): install it again, pip install --force-reinstall '{what}'"


def _system(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        return None
    names = " to ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
    )
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{names}: {reason}".removeprefix(": ") + (f"; {remedy}" if remedy else "")


def _flush() -> None:
    """Here an output that cannot be written raises; while Python ends it would not."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _say(line: str) -> None:
    line = one_line(line)
    try:
        from rich.console import Console

        Console(stderr=True, markup=False, emoji=False).print(line, highlight=False, soft_wrap=True, style="red")
    except (Exception, SystemExit):  # no memory for rich, or nobody reads stderr: then as plainly as can be
        with suppress(OSError, ValueError):
            os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")


def _give_up_stdout() -> None:
    """If stdout cannot be written, Python must not try again while it ends and replace the exit code."""
    try:
        _flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
