"""lavt-export triton: the repository that it writes; tests/test_triton.py has a server that reads it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from lavt_edge.errors import BundleError, ExportError
from lavt_edge.export.triton.repository import MODEL, TritonOptions, version_of, write_repository
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.tests.command_runs import Run, refused
from lavt_edge.tests.doc_blocks import PAGES
from lavt_edge.tests.runtime_bundle import write_bundle


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a batch of three and weights beside its graphs."""
    return write_bundle(tmp_path_factory.mktemp("small") / "bundle", 3, 0, True)


def test_a_repository_is_the_bundle_in_links_under_a_version_of_its_hash(
    small: Path, tmp_path: Path, command: Run
) -> None:
    code, printed, _ = command("lavt-export", "triton", small, "--output", tmp_path / "models", "--instances", 2)
    version = version_of((small / "lavt.json").read_bytes())
    assert code == 0
    assert f"lavt, version {version}\n" in printed
    written = tmp_path / "models" / "lavt"
    assert {path.name for path in written.iterdir()} == {"config.pbtxt", str(version)}
    assert content(written / str(version) / "bundle") == content(small)
    assert (written / str(version) / "model.py").read_bytes() == MODEL.read_bytes()
    for name in open_bundle(small).manifest.files:
        assert (written / str(version) / "bundle" / name).samefile(small / name)
    assert "count: 2\n" in (written / "config.pbtxt").read_text()


def test_versions_are_positive_short_and_of_the_content(small: Path) -> None:
    manifest = (small / "lavt.json").read_bytes()
    assert version_of(manifest) != version_of(manifest + b" ")
    assert all(0 < version_of(bytes([i])) < 2**48 for i in range(200))


def test_bare_graphs_come_with_their_weights(small: Path, tmp_path: Path) -> None:
    version, names = write_repository(small, tmp_path / "models", TritonOptions("onnxruntime"))
    assert names == ["lavt_text", "lavt_segmenter"]
    for name, graph in zip(names, ("text_encoder", "segmenter"), strict=True):
        files = {path.name for path in (tmp_path / "models" / name / str(version)).iterdir()}
        assert files == {f"{graph}.onnx", *open_bundle(small).manifest.weights_of(f"{graph}.onnx")}


def test_another_file_system_gets_copies(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    version, _ = write_repository(small, tmp_path / "models", TritonOptions())
    copied = tmp_path / "models" / "lavt" / str(version) / "bundle"
    assert content(copied) == content(small)
    assert not (copied / "tokenizer.json").samefile(small / "tokenizer.json")


def test_a_full_disk_leaves_nothing(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_repository(small, tmp_path / "served", TritonOptions())
    before = content(tmp_path / "served")
    other = write_bundle(tmp_path / "other", 1, 1, False)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", refuse)
    for output in ("new", "served"):
        with pytest.raises(ExportError, match=r"cannot be written \(No space left"):
            write_repository(other, tmp_path / output, TritonOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "served"]
    assert content(tmp_path / "served") == before


def test_a_second_bundle_is_added_and_served_whatever_its_number(small: Path, tmp_path: Path) -> None:
    models, other = tmp_path / "models", write_bundle(tmp_path / "other", 1, 1, False)
    for bundle in (small, other, small):  # of two numbers one is the smaller: both ways are gone
        write_repository(bundle, models, TritonOptions("onnxruntime"))
        version, _ = write_repository(bundle, models, TritonOptions())
        for name in ("lavt", "lavt_text", "lavt_segmenter"):
            assert f"versions: [{version}]\n" in (models / name / "config.pbtxt").read_text()
    folders = {path.name for path in (models / "lavt").iterdir() if path.is_dir()}
    assert folders == {str(version_of((bundle / "lavt.json").read_bytes())) for bundle in (small, other)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{small}", "--output", "{small}"), "not a model repository; name another folder"),
        (("{small}", "--output", "{small}/lavt.json"), "is not a folder"),
        (("{small}/text_encoder.onnx", "--output", "{new}", "--backend", "onnxruntime"), "give the bundle's folder"),
        (("{small}", "--output", "{new}", "--backend", "tensorrt"), "lavt-export trt"),
        (("{small}", "--output", "{new}", "--backend", "pytorch"), "give one of python, onnxruntime, tensorrt"),
        (("{small}", "--output", "{new}", "--instances", "0"), "give 1 to 64"),
        (("{new}", "--output", "{new}"), "no such bundle"),
    ],
)
def test_refusals(small: Path, tmp_path: Path, command: Run, arguments: tuple[str, ...], says: str) -> None:
    before = content(small)
    filled = [word.format(small=small, new=tmp_path / "new") for word in arguments]
    assert says in refused(command("lavt-export", "triton", *filled))
    assert content(small) == before
    assert not (tmp_path / "new").exists()


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", 1, 0, False)
    (bundle / "tokenizer.json").write_bytes((bundle / "tokenizer.json").read_bytes().replace(b"the", b"eht"))
    with pytest.raises(BundleError, match="another SHA-256"):
        write_repository(bundle, tmp_path / "models", TritonOptions())
    assert not (tmp_path / "models").exists()


def test_limits_on_the_page_are_those_of_the_code() -> None:
    page = next(page for page in PAGES if page.name == "triton.md").read_text(encoding="utf-8")
    limits = dict(re.findall(r"^(MOST_\w+) = ([\d_]+)$", MODEL.read_text(), re.MULTILINE))
    assert f"over {int(limits['MOST_PIXELS']) // 1_000_000} million pixels" in " ".join(page.split())
    assert f"over {limits['MOST_CHARACTERS']} characters" in page
    assert f"more than {limits['MOST_SENTENCES']} sentences" in page
