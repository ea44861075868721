"""Files and folders that appear whole or not at all: written beside, forced to disk, renamed."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Forces a file's or folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_of(target: Path) -> Path:
    """A name beside `target` that says whose it is: .NAME.PID.RANDOM.partial"""
    if not target.name or target.name == "..":
        raise IsADirectoryError(errno.EISDIR, f"{target} is no new name")
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def remove_abandoned(target: Path) -> None:
    """Removes what processes that are gone left of `target`, as far as this user may."""
    for path in target.parent.glob(f".{_escaped(target.name)}.*.*.partial"):
        pid = path.name.split(".")[-3]
        if re.fullmatch("[0-9]{1,7}", pid) and not _alive(int(pid)):
            _remove(path)
    if target.exists():
        for path in target.parent.glob(f".{_escaped(target.name)}.*.replaced"):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # which says of a file in the way what callers take for the target's existence
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder") from error


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` at the end; on any error nothing of it is left.

    With `replace`, an existing `target` gives way at the last moment. Raises OSError, FileExistsError among them.
    """
    if target.exists() and not replace and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already")
    _make_folder(target.parent)
    remove_abandoned(target)
    partial = partial_of(target)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*"), reverse=True):
            sync(path)
        sync(partial)
        # Not a `.partial`: were this process killed between the two renames, the old content must stay.
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.replaced") if target.exists() else None
        if old is not None:
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if old is not None:
                old.rename(target)
            raise
        sync(target.parent)
        if old is not None:
            _remove(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which replaces `target` at the end; on any error nothing of it is left.

    A symbolic link is followed. Raises OSError for what is no regular file, such as a device.
    """
    target = Path(os.path.realpath(target)) if target.is_symlink() else target
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"{target} is not a regular file")
    _make_folder(target.parent)
    remove_abandoned(target)
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
