"""Files and folders that appear whole or not at all: written beside, forced to disk, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_marks: set[str] = set()  # of this process's partials


def sync(path: Path) -> None:
    """Forces a file's or folder's content to disk, if its file system and its permissions have such a thing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def partial_of(target: Path) -> Path:
    """A name beside `target` that says whose it is: .NAME.PID.RANDOM.partial"""
    if not target.name or target.name == "..":
        raise IsADirectoryError(errno.EISDIR, f"{target} is not the name of a new file")
    mark = secrets.token_hex(4)
    _marks.add(mark)
    return target.with_name(f".{target.name}.{os.getpid()}.{mark}.partial")


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes what processes that are gone left in `folder`: of the file `name`, or of any (None)."""
    known = ".+" if name is None else re.escape(name)
    for path in _matching(folder, rf"\.{known}\.[0-9]{{1,7}}\.[0-9a-f]{{8}}\.partial"):
        _, pid, mark, _ = path.name.rsplit(".", 3)
        # With this process's id but not its own: in a container every run may have the same.
        if not _alive(int(pid)) or (int(pid) == os.getpid() and mark not in _marks):
            _remove(path)
    if name is not None and (folder / name).exists():
        for path in _matching(folder, rf"\.{known}\.[0-9a-f]{{8}}\.replaced"):
            _remove(path)


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in names if re.fullmatch(pattern, name, re.DOTALL)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # which says of a file in the way what callers take for the target's existence
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder") from error


@contextmanager
def locked(path: Path, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> Iterator[int]:
    """Holds the lock of a folder, or of what `flags` open, until the context or the process ends; gives its descriptor.

    Raises BlockingIOError if another process holds it, OSError if it cannot be opened.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(errno.EWOULDBLOCK, "another command is writing it; wait for it to end") from None
            except OSError:
                pass  # a file system without locks
            if _is_named(descriptor, path):  # else it was removed or replaced before the lock was had
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` at the end; on any error nothing of it is left.

    With `replace`, what `target` is at the start gives way at the last moment. A symbolic link is followed. Raises
    OSError: FileExistsError if the name is taken, at the start or at the end, BlockingIOError if another
    process writes to it.
    """
    target = Path(os.path.realpath(target)) if target.is_symlink() else target
    _refuse_content(target, replace)
    partial = partial_of(target)
    _make_folder(target.parent)
    with ExitStack() as locks:
        # A name that nothing may have yet is locked by a file beside it, which goes with the lock.
        beside = target.with_name(f".{target.name}.lock")
        locks.enter_context(locked(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
        locks.callback(_remove, beside)
        if target.is_dir():
            locks.enter_context(locked(target))
        _refuse_content(target, replace)  # another process may have been faster
        old = os.stat(target) if target.exists() and replace else None
        remove_abandoned(target.parent, target.name)
        partial.mkdir()
        try:
            yield partial
            for path in sorted(partial.rglob("*"), reverse=True):
                sync(path)
            sync(partial)
            _give_name(partial, target, old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        remove_abandoned(target.parent, target.name)


def _refuse_content(target: Path, replace: bool) -> None:
    if target.exists() and not replace and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(errno.EEXIST, f"{target} exists already")


def _give_name(partial: Path, target: Path, old: os.stat_result | None) -> None:
    """Renames `partial` to `target`; only `old`, or an empty folder, gives way."""
    away = None
    if old is not None and target.exists():
        if not os.path.samestat(os.stat(target), old):
            raise FileExistsError(errno.EEXIST, f"{target} was replaced meanwhile")
        # Not a `.partial`: were this process killed between the two renames, the old content must stay.
        away = target.with_name(f".{target.name}.{secrets.token_hex(4)}.replaced")
        target.rename(away)
    try:
        partial.rename(target)
    except OSError as error:
        if away is not None:
            away.rename(target)
        elif target.exists():
            raise FileExistsError(errno.EEXIST, f"{target} was made meanwhile") from error
        raise
    sync(target.parent)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which replaces `target` at the end; on any error nothing of it is left.

    A symbolic link is followed. Raises OSError for what is not a regular file, such as a device.
    """
    target = Path(os.path.realpath(target)) if target.is_symlink() else target
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"{target} is not a regular file")
    _make_folder(target.parent)
    remove_abandoned(target.parent, target.name)
    partial = partial_of(target)
    try:
        yield partial
        sync(partial)
        partial.replace(target)
        sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(target: Path, data: bytes) -> None:
    """Writes a file whole or not at all; see `whole_file`."""
    with whole_file(target) as partial:
        partial.write_bytes(data)
