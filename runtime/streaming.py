"""Working ahead: a thread prepares the next items of a stream while the caller is busy with the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from queue import SimpleQueue
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_PATIENCE_SECONDS = 5.0


def prepared_ahead(
    items: Iterable[_Given], prepare: Callable[[_Given], _Made], ahead: int = 2
) -> Generator[_Made, None, None]:
    """`prepare(item)` for every item, in order; a thread takes and prepares up to `ahead` items in advance.

    What `items` or `prepare` raises is raised in the place of that item, and ends the stream. Closing the generator
    stops the thread after the item that it is at; an item that takes longer than five seconds is not waited for.
    """
    done: SimpleQueue[tuple[_Made | None, BaseException | None]] = SimpleQueue()
    slots = threading.Semaphore(ahead)
    stopped = threading.Event()
    worker = threading.Thread(
        target=_work, args=(items, prepare, done, slots, stopped), name="lavt_edge stream", daemon=True
    )
    worker.start()
    try:
        while True:
            made, error = done.get()
            if isinstance(error, _End):
                return
            if error is not None:
                raise error
            slots.release()
            yield made  # type: ignore[misc]
    finally:
        stopped.set()
        slots.release()
        worker.join(_PATIENCE_SECONDS)


class _End(Exception):  # noqa: N818
    """Says that there are no more items."""


def _work(
    items: Iterable[_Given],
    prepare: Callable[[_Given], _Made],
    done: SimpleQueue[tuple[_Made | None, BaseException | None]],
    slots: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    try:
        source = iter(items)
        while True:
            slots.acquire()
            if stopped.is_set():
                return
            try:
                item = next(source)
            except StopIteration:
                raise _End from None
            done.put((prepare(item), None))
    except BaseException as error:
        done.put((None, error))
