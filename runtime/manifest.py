"""The manifest of a bundle, `lavt.json`: parsed once, checked, and then trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .._base import strict_json
from .._base.records import OPTIONAL, to_plain
from ..errors import BundleError
from .images.layouts import LAYOUTS

FORMAT_VERSION = 1
MANIFEST_NAME = "lavt.json"
_OPTIONAL = ("precisions", "engines", "frames")
GRAPH_ROLES = ("text_encoder", "segmenter")
FRAME_ROLES = ("frame", "mask")
EXPORT_AGAIN = "export it again with lavt-export onnx"

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+\-]{0,199}")
_LAYOUT = re.compile("|".join(LAYOUTS))
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[a-z0-9][a-z0-9_\-]{0,63}")

JsonObject: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: what it is for, its SHA-256 (64 lower-case hex digits) and its size in bytes."""

    role: str
    sha256: str
    bytes: int
    precision: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class InputSpec:
    """What the graphs take: pixels, words, and the batch size (None: dynamic)."""

    height: int
    width: int
    batch: int | None
    max_words: int
    prompt_channels: int


@dataclass(frozen=True)
class CheckpointInfo:
    """The checkpoint that a bundle was exported from.

    `ema` is true if its averaged parameters were taken; `note` says what was assumed, as nothing in the file says it.
    """

    name: str
    sha256: str
    ema: bool | None = field(default=None, metadata=OPTIONAL)
    note: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class FrameEntry:
    """Two graphs for a camera's frames of one size and layout, `frame` and `mask` by their files' names; `parity` is
    what was measured against the general path."""

    height: int
    width: int
    pixels: str
    frame: str
    mask: str
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
    parity: JsonObject
    precisions: JsonObject = field(default_factory=dict)
    engines: JsonObject = field(default_factory=dict)
    frames: Mapping[str, FrameEntry] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: object) -> Manifest:
        """Check every field of a decoded `lavt.json`; unknown keys are ignored.

        Raises:
            BundleError: the format version is another, or a field is missing, mistyped or out of range.
        """
        fields = _mapping(data, "the whole file")
        version = _integer(fields, "format_version", 0, 2**31)
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has format version {version}, this lavt-edge reads version {FORMAT_VERSION}: "
                f"update lavt-edge, or {EXPORT_AGAIN}"
            )
        spec = _mapping(fields.get("input"), "input")
        checkpoint = _mapping(fields.get("checkpoint"), "checkpoint")
        files = _mapping(fields.get("files"), "files")
        manifest = cls(
            generator=_mapping(fields.get("generator"), "generator"),
            model=_mapping(fields.get("model"), "model"),
            input=InputSpec(
                height=_integer(spec, "height", 1, 16384),
                width=_integer(spec, "width", 1, 16384),
                batch=None if "batch" in spec and spec["batch"] is None else _integer(spec, "batch", 1, 1024),
                max_words=_integer(spec, "max_words", 3, 512),
                prompt_channels=_integer(spec, "prompt_channels", 1, 1_000_000),
            ),
            checkpoint=CheckpointInfo(
                name=_string(checkpoint, "name"),
                sha256=_string(checkpoint, "sha256", _SHA256, "a SHA-256"),
                ema=True if checkpoint.get("ema") is True else None,
                note=None if checkpoint.get("note") is None else _string(checkpoint, "note"),
            ),
            files={_file_name(name): _file_entry(name, entry) for name, entry in files.items()},
            parity=_objects(fields, "parity"),
            precisions=_objects(fields, "precisions"),
            engines=_objects(fields, "engines"),
            frames={name: _frame_entry(name, value) for name, value in _objects(fields, "frames").items()},
        )
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
            if entry.role in GRAPH_ROLES and entry.precision is None:
                raise _refused(f"files.{name}.precision", "a graph needs one, such as fp32")
            if entry.role in (*GRAPH_ROLES, "tokenizer"):
                key = (entry.role, entry.precision if entry.role in GRAPH_ROLES else None)
                if key in seen:
                    raise _refused(f"files.{name}", "a second file with the same role and precision")
                seen.add(key)
        for name, frame in self.frames.items():
            for role in FRAME_ROLES:
                graph = self.files.get(getattr(frame, role))
                if graph is None or graph.role != role:
                    raise _refused(f"frames.{_shown(name)}.{role}", "no such graph in files")


def _refused(where: str, problem: str) -> BundleError:
    return BundleError(f"{MANIFEST_NAME}: {where}: {problem}; {EXPORT_AGAIN}")


def _mapping(value: object, where: str) -> JsonObject:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _refused(where, f"expected an object, found {_shown(value)}")
    return value


def _objects(fields: JsonObject, key: str) -> JsonObject:
    """An object of objects; empty if it is missing."""
    objects = _mapping(fields.get(key, {}), key)
    return {name: _mapping(value, f"{key}.{_shown(name)}") for name, value in objects.items()}


def _integer(fields: JsonObject, key: str, low: int, high: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _refused(key, f"expected an integer from {low} to {high}, found {_shown(value)}")
    return value


def _string(fields: JsonObject, key: str, pattern: re.Pattern[str] | None = None, what: str = "text") -> str:
    value = fields.get(key)
    if not isinstance(value, str) or len(value) > 4096 or (pattern is not None and not pattern.fullmatch(value)):
        raise _refused(key, f"expected {what}, found {_shown(value)}")
    return value


def _file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
        raise _refused("files", f"{_shown(name)} is not a plain file name")
    return name


def _file_entry(name: str, value: object) -> FileEntry:
    fields = _mapping(value, f"files.{name}")
    return FileEntry(
        role=_string(fields, "role", _WORD, "a role"),
        sha256=_string(fields, "sha256", _SHA256, "a SHA-256"),
        bytes=_integer(fields, "bytes", 0, 2**50),
        precision=None if fields.get("precision") is None else _string(fields, "precision", _WORD, "a precision"),
    )


def _frame_entry(name: str, fields: JsonObject) -> FrameEntry:
    entry = FrameEntry(
        height=_integer(fields, "height", 2, 16384),
        width=_integer(fields, "width", 2, 16384),
        pixels=_string(fields, "pixels", _LAYOUT, f"one of {', '.join(LAYOUTS)}"),
        frame=_string(fields, "frame", _FILE_NAME, "a file name"),
        mask=_string(fields, "mask", _FILE_NAME, "a file name"),
        parity=_mapping(fields.get("parity"), f"frames.{_shown(name)}.parity"),
    )
    if entry.name != name:
        raise _refused("frames", f"{_shown(name)} is an entry for {entry.name}")
    return entry


def _shown(value: object) -> str:
    """A value as one short line; containers by their type only, since they may be deep or large."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return {dict: "an object", list: "a list"}[type(value)]
    if isinstance(value, int) and abs(value) > 2**64:
        return "a huge integer"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
