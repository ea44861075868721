"""A bundle on disk: a folder with `lavt.json`, and files that are verified against it before they are used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BundleError
from .manifest import EXPORT_AGAIN, MANIFEST_NAME, FileEntry, Manifest
from .tokenizer import SentenceTokenizer

_MAX_MANIFEST_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_entry(path: str | os.PathLike[str], role: str, precision: str | None = None) -> FileEntry:
    """The manifest's entry for a file that exists."""
    return FileEntry(role=role, sha256=sha256_of(path), bytes=Path(path).stat().st_size, precision=precision)


class Bundle:
    """A bundle that was opened: its folder, its manifest, and its files once they are verified.

    `selected` is the file name if a file inside the bundle was opened instead of the folder.
    """

    def __init__(self, root: Path, manifest: Manifest, selected: str | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self.selected = selected
        self._verified: set[str] = set()

    @property
    def fingerprint(self) -> str:
        """Equal for bundles whose prompts are interchangeable: same checkpoint, tokenizer and text encoder."""
        names = (
            self.manifest.find("text_encoder", "fp32") or self.manifest.find("text_encoder"),
            self.manifest.find("tokenizer"),
        )
        parts = [self.manifest.checkpoint.sha256, *(self.manifest.files[name].sha256 for name in names if name)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def has(self, role: str, precision: str | None = None) -> bool:
        """Whether the manifest lists a file with this role and precision (None: any)."""
        return self.manifest.find(role, precision) is not None

    def file(self, role: str, precision: str | None = "fp32") -> Path:
        """The path of a file, after its size and SHA-256, and those of its external weights, are verified (once).

        `precision` counts for graphs alone. Raises BundleError if the file is not listed, missing or altered.
        """
        name = self.manifest.find(role, None if role == "tokenizer" else precision)
        if name is None:
            available = sorted({entry.precision or "-" for entry in self.manifest.files.values() if entry.role == role})
            instead = f"it has {', '.join(available)}" if available else EXPORT_AGAIN
            raise BundleError(f"{self.root} has no {role} of precision {precision}: {instead}")
        return self.verified(name)

    def verified(self, name: str) -> Path:
        """The path of a file that the manifest lists, checked as `file` does. Raises BundleError."""
        for part in (name, *self.manifest.weights_of(name)):
            self._verify(part)
        return self.root / name

    def tokenizer(self) -> SentenceTokenizer:
        """The tokenizer, which cuts and pads to the graphs' number of words. Raises BundleError."""
        data = self.file("tokenizer").read_bytes()
        return SentenceTokenizer.from_json(data, self.manifest.input.max_words)

    def engine_bytes(self, name: str, remedy: str) -> bytes:
        """The content of an engine file that the manifest lists; it is these very bytes that were verified.

        Raises BundleError, which ends with `remedy`, if the file is missing or altered.
        """
        with self._reading(name, remedy) as path:
            data = path.read_bytes()
        self._check_digest(name, hashlib.sha256(data).hexdigest(), remedy)
        return data

    def _verify(self, name: str) -> None:
        if name in self._verified:
            return
        with self._reading(name, EXPORT_AGAIN) as path:
            digest = sha256_of(path)
        self._check_digest(name, digest, EXPORT_AGAIN)
        self._verified.add(name)

    @contextmanager
    def _reading(self, name: str, remedy: str) -> Iterator[Path]:
        """The path of a listed file that is within the bundle and of the listed size; failing to read it is refused."""
        path, entry = self.root / name, self.manifest.files[name]
        try:
            resolved = path.resolve()
            if resolved.parent != self.root.resolve():
                raise BundleError(f"{path} is a link that leaves the bundle: {remedy}")
            if not resolved.is_file():
                raise BundleError(f"{path} is missing, {MANIFEST_NAME} lists it: {remedy}")
            size = resolved.stat().st_size
            if size != entry.bytes:
                raise BundleError(f"{path} has {size} bytes, {MANIFEST_NAME} says {entry.bytes}: {remedy}")
            yield resolved
        except (OSError, RuntimeError) as error:
            raise BundleError(f"{path} cannot be read ({_reason(error)}): {remedy}") from None

    def _check_digest(self, name: str, digest: str, remedy: str) -> None:
        if digest != self.manifest.files[name].sha256:
            raise BundleError(
                f"{self.root / name} has another SHA-256 than {MANIFEST_NAME} says, it was altered: {remedy}"
            )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by its folder, or by an .onnx or .engine file inside it; reads `lavt.json`, verifies files later.

    Raises BundleError: no such path, not a bundle, or a manifest that is malformed or of another format version.
    """
    given = Path(path)
    try:
        if given.is_dir():
            root, selected = given, None
        elif not given.exists():
            raise BundleError(f"no such bundle: {given}; make one with lavt-export onnx")
        elif given.suffix in (".onnx", ".engine"):
            root, selected = given.parent, given.name
        else:
            raise BundleError(f"{given} is not a bundle: give the folder that lavt-export onnx wrote")
        manifest = _read_manifest(root)
    except (OSError, ValueError) as error:
        raise BundleError(f"{given} cannot be read ({_reason(error)})") from None
    if selected is not None and selected not in manifest.files:
        raise BundleError(f"{given} is not listed in {MANIFEST_NAME} beside it: give the bundle's folder")
    return Bundle(root, manifest, selected)


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{root} is not a bundle (it has no {MANIFEST_NAME}): make one with lavt-export onnx")
    with open(path, "rb") as stream:
        text = stream.read(_MAX_MANIFEST_BYTES + 1)
    if len(text) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {_MAX_MANIFEST_BYTES} bytes: {EXPORT_AGAIN}")
    try:
        return Manifest.parse_json(text)
    except BundleError as error:
        raise BundleError(f"{root}: {error}") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
