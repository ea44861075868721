"""Adding files to a bundle that exists: all of them or none, one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from .._base.files import locked, partial_of, remove_abandoned, sync, write_whole
from ..errors import BundleError
from .bundle import open_bundle
from .manifest import MANIFEST_NAME, FileEntry, Manifest

BUSY = "another command is changing this bundle; wait for it to end"

Change = Callable[[Manifest], Manifest]


class BundleUpdate:
    """Files under way to a bundle, made by `update_bundle`; the bundle stays as it was until `commit`."""

    def __init__(self, root: Path, descriptor: int) -> None:
        self.root = root
        self._descriptor = descriptor
        self._partials: dict[str, Path] = {}

    def manifest(self) -> Manifest:
        """The bundle's, as it is now."""
        return _read(self.root)

    def new(self, name: str) -> Path:
        """The path to write the bundle's new (or next) file `name` to."""
        self._partials[name] = partial_of(self.root / name)
        return self._partials[name]

    def path(self, name: str) -> Path:
        """Where `new` said that `name` is written to."""
        return self._partials[name]

    def commit(self, entries: Mapping[str, FileEntry], change: Change = lambda manifest: manifest) -> Manifest:
        """Gives every new file its name and lists it; `change` edits the rest of the manifest. Returns the manifest.

        Were the process killed within, the bundle would be whole, with or without the files that are replaced. Engines
        that were built from a graph that is gone are dropped.
        """
        assert entries.keys() == self._partials.keys()
        if not os.path.samestat(os.fstat(self._descriptor), os.stat(self.root)):
            raise BundleError(f"{self.root} was replaced by another command meanwhile; run this one again")
        old = _read(self.root)
        changed = change(replace(old, files={**old.files, **entries}))
        hashes = {entry.sha256 for entry in changed.files.values()}
        stale = {name for name, engine in changed.engines.items() if str(engine.get("onnx_sha256")) not in hashes}
        final = _without(changed, stale)
        text = final.to_json()  # refused before anything is touched
        self._write(_without(old, stale | entries.keys()).to_json())
        for name in stale:
            with suppress(OSError):
                (self.root / name).unlink()
        for name, partial in self._partials.items():
            sync(partial)
            partial.replace(self.root / name)
        sync(self.root)
        self._write(text)
        self._partials.clear()
        return final

    def _write(self, text: str) -> None:
        write_whole(self.root / MANIFEST_NAME, text.encode())

    def discard(self) -> None:
        """Removes what was not committed."""
        for partial in self._partials.values():
            with suppress(OSError):
                partial.unlink()


@contextmanager
def update_bundle(root: Path) -> Iterator[BundleUpdate]:
    """The right to change the bundle in folder `root`, for as long as the context lasts.

    Raises BundleError if `root` is not a bundle, cannot be written, or is being changed by another process.
    """
    _read(root)
    try:
        with locked(root) as descriptor:
            remove_abandoned(root)
            update = BundleUpdate(root, descriptor)
            try:
                yield update
            finally:
                update.discard()
    except BlockingIOError:
        raise BundleError(f"{root}: {BUSY}") from None
    except OSError as error:
        raise BundleError(f"{root}: cannot be written ({error.strerror or error})") from error


def _read(root: Path) -> Manifest:
    bundle = open_bundle(root)
    if bundle.selected is not None:
        raise BundleError(f"{root} is not a bundle's folder: give the folder that lavt-export onnx wrote")
    return bundle.manifest


def _without(manifest: Manifest, names: set[str]) -> Manifest:
    return replace(
        manifest,
        files={name: entry for name, entry in manifest.files.items() if name not in names},
        frames={name: entry for name, entry in manifest.frames.items() if names.isdisjoint((entry.frame, entry.mask))},
        engines={name: engine for name, engine in manifest.engines.items() if name not in names},
    )
