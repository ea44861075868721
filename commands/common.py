"""What the commands share: the consoles, options' values, progress and tables."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .._base.progress import Progress, Report
from ..errors import ExportError, LavtError, one_line

# A line is not wrapped: whoever reads it through a pipe gets it whole.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA if it can be used, else the CPU.")]


def parse_size(text: str, option: str = "--image-size") -> tuple[int, int]:
    """Height and width of `480` or `480x640`. Raises ExportError."""
    sizes = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.lower())
    if sizes is None:
        raise ExportError(f"{option} {text!r}: give a number such as 480, or HEIGHTxWIDTH such as 480x640")
    return int(sizes[1]), int(sizes[2] or sizes[1])


def parse_batch(text: str) -> int | None:
    """None for `dynamic`. Raises ExportError."""
    if text == "dynamic":
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ExportError(f"--batch {text!r}: give a number, or 'dynamic'")
    return int(text)


def parse_heads(text: str | None) -> tuple[int, int, int, int] | None:
    """The four numbers of `4-4-4-4`. Raises ExportError."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,3}(-[0-9]{1,3}){3}", text):
        raise ExportError(f"--fusion-heads {text!r}: give four numbers such as 4-4-4-4")
    first, second, third, fourth = map(int, text.split("-"))
    return first, second, third, fourth


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Which of how many, of `3/8`. Raises LavtError."""
    if text is None:
        return None
    shard = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if shard is None:
        raise LavtError(f"--shard {text!r}: give which of how many, such as 3/8")
    return int(shard[1]), int(shard[2])


def refuse(context: typer.Context, options: tuple[str, ...], reason: str) -> None:
    """Refuses the first of `options` that was given."""
    for option in options:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise LavtError(f"--{option.removesuffix('_file').replace('_', '-')} {reason}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Refuses a file that cannot be written. Raises LavtError."""
    try:
        yield
    except OSError as error:
        raise LavtError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Shows warnings on stderr, one line each, after the body; if the body fails, only its error is shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        warn(str(warning.message))


def warn(text: str) -> None:
    err.print(f"warning: {one_line(text)}")


@contextmanager
def without_library_output() -> Iterator[None]:
    """Drops what C libraries write to stderr on their own, as libtiff does about a damaged file."""
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


@contextmanager
def progress_bar(step: str = "starting") -> Iterator[tuple[Report, Progress]]:
    """A bar on stderr, if that is a terminal: call the first to name the next step, the second with (done, total)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(step, total=None)

        def report(step: str) -> None:
            bar.update(task, description=step, completed=0)
            bar.tasks[0].total = None  # update() takes None for no change; without a total the bar pulses

        yield report, lambda done, total: bar.update(task, completed=done, total=total)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if title:
        out.print(title)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    width = max(out.width, 100)  # so that no figure is cut short
    Console(width=width, markup=False, emoji=False).print(table)
