"""Working ahead: a thread prepares the next items of a stream while the caller is busy with the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_Done = TypeVar("_Done")
_PATIENCE_SECONDS = 5.0
_AHEAD = 2
_END: Any = object()


def worked_ahead(
    items: Iterable[_Given],
    prepare: Callable[[_Given], _Made],
    start: Callable[[_Made], Callable[[], _Done]],
) -> Generator[_Done, None, None]:
    """`start(prepare(item))()` for every item, in order; a thread takes and prepares up to two items in advance.

    The next item is started before a result is handed out, if it is prepared by then: its work goes on while the caller
    is busy with the result, which never waits for the next item.

    What `items`, `prepare` or `start` raises is raised in the place of that item, and ends the stream. Closing the
    generator stops the thread after the item that it is at; one that takes longer than five seconds is not waited for.
    """
    done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    slots = threading.Semaphore(_AHEAD)
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

    def begin(made: Any, error: BaseException | None) -> Callable[[], Any]:
        if error is None:
            try:
                return _END if made is _END else start(made)
            except Exception as failure:
                error = failure
        return partial(_raise, error)

    worker = threading.Thread(target=work, name="lavt_edge stream", daemon=True)
    worker.start()
    try:
        finish = begin(*done.get())
        while finish is not _END:
            slots.release()
            result = finish()
            following = None if done.empty() else begin(*done.get())
            yield result
            finish = following or begin(*done.get())
    finally:
        stopped.set()
        slots.release()
        worker.join(_PATIENCE_SECONDS)


def _raise(error: BaseException) -> NoReturn:
    raise error
