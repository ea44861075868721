"""The manifest of a bundle, `lavt.json`: parsed once, checked, and then trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .._base import strict_json
from .._base.records import OPTIONAL, from_plain, like, shown, to_plain, within
from ..errors import BundleError
from .images.layouts import LAYOUTS

FORMAT_VERSION = 1
MANIFEST_NAME = "lavt.json"
_OPTIONAL = ("precisions", "engines", "frames")
GRAPH_ROLES = ("text_encoder", "segmenter")
FRAME_ROLES = ("frame", "mask")
EXPORT_AGAIN = "export it again with lavt-export onnx"

_FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._+\-]{0,199}"
_FILE = like(_FILE_NAME, "a file name")
_TEXT = like(r".{0,4096}", "text of at most 4096 characters")
_SHA256 = like(r"[0-9a-f]{64}", "a SHA-256")
_WORD = r"[a-z0-9][a-z0-9_\-]{0,63}"
_SIDE, _FRAME_SIDE = within(1, 16384), within(2, 16384)

JsonObject: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: what it is for, its SHA-256 (64 lower-case hex digits) and its size in bytes."""

    role: str = field(metadata=like(_WORD, "a role"))
    sha256: str = field(metadata=_SHA256)
    bytes: int = field(metadata=within(0, 2**50))
    precision: str | None = field(default=None, metadata={**OPTIONAL, **like(_WORD, "a precision")})


@dataclass(frozen=True)
class InputSpec:
    """What the graphs take: pixels, words, and the batch size (None: dynamic)."""

    height: int = field(metadata=_SIDE)
    width: int = field(metadata=_SIDE)
    batch: int | None = field(metadata=within(1, 1024))
    max_words: int = field(metadata=within(3, 512))
    prompt_channels: int = field(metadata=within(1, 1_000_000))


@dataclass(frozen=True)
class CheckpointInfo:
    """The checkpoint that a bundle was exported from.

    `ema` is true if its averaged parameters were taken; `note` says what was assumed, as nothing in the file says it.
    """

    name: str = field(metadata=_TEXT)
    sha256: str = field(metadata=_SHA256)
    ema: bool | None = field(default=None, metadata=OPTIONAL)
    note: str | None = field(default=None, metadata={**OPTIONAL, **_TEXT})


@dataclass(frozen=True)
class FrameEntry:
    """Two graphs for a camera's frames of one size and layout, `frame` and `mask` by their files' names; `parity` is
    what was measured against the general path."""

    height: int = field(metadata=_FRAME_SIDE)
    width: int = field(metadata=_FRAME_SIDE)
    pixels: str = field(metadata=like("|".join(LAYOUTS), f"one of {', '.join(LAYOUTS)}"))
    frame: str = field(metadata=_FILE)
    mask: str = field(metadata=_FILE)
    parity: JsonObject

    @classmethod
    def named(cls, height: int, width: int, pixels: str) -> FrameEntry:
        """One whose files have the names that they always have; all layouts of a size share a mask graph."""
        size = f"{height}x{width}"
        return cls(height, width, pixels, f"frame.{size}.{pixels}.onnx", f"mask.{size}.onnx", {})

    @property
    def name(self) -> str:
        """Such as "1080x1920.bgr"."""
        return f"{self.height}x{self.width}.{self.pixels}"


@dataclass(frozen=True)
class Manifest:
    """`lavt.json`, format version 1. `files` maps a plain file name (no folders) to its entry.

    `precisions` says of each precision but fp32 how it was made and what it costs, `engines` of each engine file what
    it was built from and for; both are plain JSON objects, and empty in a bundle that has neither. `frames` are the
    graphs for a camera's frames, by size and layout.
    """

    generator: JsonObject
    model: JsonObject
    input: InputSpec
    checkpoint: CheckpointInfo
    files: Mapping[str, FileEntry]
    parity: Mapping[str, JsonObject] = field(default_factory=dict)
    precisions: Mapping[str, JsonObject] = field(default_factory=dict)
    engines: Mapping[str, JsonObject] = field(default_factory=dict)
    frames: Mapping[str, FrameEntry] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: object) -> Manifest:
        """Check every field of a decoded `lavt.json`; unknown keys are ignored.

        Raises:
            BundleError: the format version is another, or a field is missing, mistyped or out of range.
        """
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int:
            raise _refused(f"format_version: expected a whole number, found {shown(version)}")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has format version {version}, this lavt-edge reads version {FORMAT_VERSION}: "
                f"update lavt-edge, or {EXPORT_AGAIN}"
            )
        try:
            manifest = from_plain(cls, data, "")
        except ValueError as error:
            raise _refused(str(error)) from None
        manifest._check_files()
        return manifest

    @classmethod
    def parse_json(cls, text: bytes | str) -> Manifest:
        """`parse` from JSON text. Raises BundleError if it is not JSON, as well."""
        try:
            data = strict_json.loads(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST_NAME} is not valid JSON ({error}): {EXPORT_AGAIN}") from None
        return cls.parse(data)

    def to_json(self) -> str:
        """The text of `lavt.json`. Raises BundleError if `parse` would refuse it."""
        parts = {name: to_plain(getattr(self, name)) for name in ("input", "checkpoint", "files", "frames")}
        content = {"format_version": FORMAT_VERSION, **vars(self), **parts}  # the others as they are: NaN is refused
        content = {key: value for key, value in content.items() if value or key not in _OPTIONAL}
        try:
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise BundleError(f"{MANIFEST_NAME} cannot be written: {error}") from None
        self.parse_json(text)
        return text

    def find(self, role: str, precision: str | None = None) -> str | None:
        """The name of the file with this role and precision (None: any), or None."""
        for name, entry in self.files.items():
            if entry.role == role and (precision is None or entry.precision == precision):
                return name
        return None

    def weights_of(self, graph: str) -> list[str]:
        """The files with a graph's external data; their names begin with the graph's (`segmenter.onnx.data`)."""
        return [name for name, entry in self.files.items() if entry.role == "weights" and name.startswith(graph)]

    def _check_files(self) -> None:
        seen: set[tuple[str, str | None]] = set()
        for name, entry in self.files.items():
            if not re.fullmatch(_FILE_NAME, name) or name == MANIFEST_NAME:
                raise _refused(f"files: {shown(name)} is not a plain file name")
            if entry.role in GRAPH_ROLES and entry.precision is None:
                raise _refused(f"files.{name}.precision: a graph needs one, such as fp32")
            if entry.role in (*GRAPH_ROLES, "tokenizer"):
                key = (entry.role, entry.precision if entry.role in GRAPH_ROLES else None)
                if key in seen:
                    raise _refused(f"files.{name}: a second file with the same role and precision")
                seen.add(key)
        for name, frame in self.frames.items():
            if frame.name != name:
                raise _refused(f"frames: {shown(name)} is an entry for {frame.name}")
            for role in FRAME_ROLES:
                graph = self.files.get(getattr(frame, role))
                if graph is None or graph.role != role:
                    raise _refused(f"frames.{name}.{role}: no such graph in files")


def _refused(problem: str) -> BundleError:
    return BundleError(f"{MANIFEST_NAME}: {problem}; {EXPORT_AGAIN}")
