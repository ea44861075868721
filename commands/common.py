"""What the commands share: the consoles, options' values, progress and tables."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import ExportError, LavtError, one_line

if TYPE_CHECKING:
    from rich.progress import Progress

out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA where it can be used, else the CPU.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ExportError(f"--image-size {text!r}: give a number such as 480, or HEIGHTxWIDTH such as 480x640")
    return int(parts[0]), int(parts[-1])


def parse_batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ExportError(f"--batch {text!r}: give a number, or 'dynamic'")
    return int(text)


def parse_heads(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    parts = text.split("-")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and 0 < len(part) < 4 for part in parts):
        raise ExportError(f"--fusion-heads {text!r}: give four numbers such as 4-4-4-4")
    first, second, third, fourth = map(int, parts)
    return first, second, third, fourth


def refuse(context: typer.Context, options: tuple[str, ...], reason: str) -> None:
    """Refuses the first of `options` that was given."""
    for option in options:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise LavtError(f"--{option.removesuffix('_file').replace('_', '-')} {reason}")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Warnings as a line each on stderr, once what is within is done; where it fails, its error is all that is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        err.print(f"warning: {one_line(str(one.message))}", soft_wrap=True, highlight=False)


@contextmanager
def without_library_output() -> Iterator[None]:
    """Keeps off stderr what C libraries print there by themselves, as libtiff does of a damaged file."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError, AttributeError):  # no stderr, or no descriptor left
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Steps:
    """Shows the step that is under way; silent where nobody watches."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=total)
        self._begun = 0

    def __call__(self, step: str) -> None:
        self._progress.update(self._task, description=step, completed=self._begun)
        self._begun += 1


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def steps(total: int) -> Iterator[_Steps]:
    with _progress() as progress:
        yield _Steps(progress, total)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    with _progress() as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """For work in several steps of known length: what tells the step, and what tells how far it is."""
    with _progress() as progress:
        task = progress.add_task("starting", total=None)

        def report(step: str) -> None:
            progress.update(task, description=step, completed=0, total=None)

        yield report, lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def phases() -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None]]]:
    """For work that names its phase as it goes: what tells the step, and what tells the phase and the share done."""
    with _progress() as progress:
        task = progress.add_task("starting", total=None)

        def report(step: str) -> None:
            progress.update(task, description=step, completed=0, total=None)

        yield report, lambda phase, share: progress.update(task, description=phase, completed=share, total=1)


def print_table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out.print(title, soft_wrap=True, highlight=False, markup=False)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=max(out.width, 100)).print(table)  # a figure that is cut short is none
