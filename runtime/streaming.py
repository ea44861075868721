"""Working ahead: a thread prepares the next items of a stream while the caller is busy with the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_PATIENCE_SECONDS = 5.0
_END: Any = object()


def prepared_ahead(
    items: Iterable[_Given], prepare: Callable[[_Given], _Made], ahead: int = 2
) -> Generator[_Made, None, None]:
    """`prepare(item)` for every item, in order; a thread takes and prepares up to `ahead` items in advance.

    What `items` or `prepare` raises is raised in the place of that item, and ends the stream. Closing the generator
    stops the thread after the item that it is at; an item that takes longer than five seconds is not waited for.
    """
    done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    slots = threading.Semaphore(ahead)
    stopped = threading.Event()

    def work() -> None:
        try:
            source = iter(items)
            while slots.acquire() and not stopped.is_set():
                item = next(source, _END)
                if item is _END:
                    done.put((_END, None))
                    return
                done.put((prepare(item), None))
        except BaseException as error:
            done.put((None, error))

    worker = threading.Thread(target=work, name="lavt_edge stream", daemon=True)
    worker.start()
    try:
        while True:
            made, error = done.get()
            if error is not None:
                raise error
            if made is _END:
                return
            slots.release()
            yield made
    finally:
        stopped.set()
        slots.release()
        worker.join(_PATIENCE_SECONDS)
