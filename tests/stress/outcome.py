"""What a bundle must be after a command was killed: whole, by the manifest and by what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from lavt_edge.data.shapes import scene_at
from lavt_edge.runtime import Segmenter

Picture: TypeAlias = npt.NDArray[np.float32]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its SHA-256; of engines and the manifest only that it is there.

    TensorRT does not build the same bytes twice, and the manifest holds hashes and seconds of engines.
    """
    return {
        str(path.relative_to(folder)): "" if path.suffix == ".engine" or path.name == "lavt.json" else _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def segment_all(bundle: Path) -> dict[str, Picture]:
    """The probabilities that each of the bundle's precisions gives for one sentence on one scene."""
    manifest = _manifest(bundle)
    precisions = {one["precision"] for one in manifest["files"].values() if one["role"] == "segmenter"}
    image = scene_at(9, "val", 0).render()
    found = {}
    for precision in precisions:
        with Segmenter.load(bundle, device="cpu", threads=1, precision=precision) as segmenter:
            found[precision] = segmenter.segment(image, "the leftmost circle").probability
    return found


def check_whole(
    bundle: Path, pictures: Sequence[Mapping[str, Picture]], *, allowed: Mapping[str, str], what: str
) -> None:
    """Every listed file is intact, the runtime loads each precision, and it computes one of `pictures`, bit for bit.

    Visible files that the manifest does not list are among `allowed`, a folder's contents with the bundle in it.
    """
    files = _manifest(bundle)["files"]
    for name, entry in files.items():
        assert _sha256(bundle / name) == entry["sha256"], f"{what}: {name} is not what the manifest says"
        assert (bundle / name).stat().st_size == entry["bytes"], f"{what}: {name} has another size"
    visible = {path.name for path in bundle.iterdir() if not path.name.startswith(".")}
    known = {*files, "lavt.json", *(Path(name).name for name in allowed)}
    assert visible <= known, f"{what}: left {sorted(visible - known)}"
    found = segment_all(bundle)
    assert any(_are_equal(found, one) for one in pictures), f"{what}: other masks than before"


def _are_equal(found: Mapping[str, Picture], known: Mapping[str, Picture]) -> bool:
    return found.keys() <= known.keys() and all(np.array_equal(found[name], known[name]) for name in found)


def _manifest(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "lavt.json").read_text())
    return manifest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
