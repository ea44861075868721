"""A bundle is read once, checked, and refused with one line that says what to do."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lavt_edge.errors import BundleError, LavtError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import file_entry, open_bundle, sha256_of
from lavt_edge.runtime.manifest import FileEntry, Manifest
from lavt_edge.tests.runtime_bundle import manifest_for, write_bundle

SHA = "a" * 64


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def refusal(path: Path | str, kind: type[LavtError] = BundleError) -> str:
    """The message with which loading everything in the bundle is refused; always one line."""
    with pytest.raises(kind) as caught:
        Segmenter.load(path, device="cpu", threads=1)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(bundle: Path, **changes: object) -> None:
    data = json.loads((bundle / "lavt.json").read_text())
    (bundle / "lavt.json").write_text(json.dumps({**data, **changes}))


def test_a_manifest_survives_the_round_trip(bundle: Path) -> None:
    text = (bundle / "lavt.json").read_text()
    manifest = Manifest.parse_json(text)
    assert manifest.to_json() == text
    assert manifest.input.batch == 1
    assert manifest.files["segmenter.onnx"].precision == "fp32"
    assert manifest.files["tokenizer.json"].precision is None
    assert "precision" not in json.loads(text)["files"]["tokenizer.json"]


def test_unknown_keys_are_tolerated(bundle: Path) -> None:
    data = json.loads((bundle / "lavt.json").read_text())
    data["future"] = {"x": [1]}
    data["input"]["future"] = 1
    data["files"]["segmenter.onnx"]["future"] = None
    data["files"]["plan.engine"] = {"role": "engine", "precision": "int8", "sha256": SHA, "bytes": 1}
    assert Manifest.parse(data).input == Manifest.parse_json((bundle / "lavt.json").read_text()).input


def test_a_manifest_that_would_be_refused_is_not_written() -> None:
    with pytest.raises(BundleError, match="not a plain file name"):
        manifest_for({"../segmenter.onnx": FileEntry("segmenter", SHA, 1, "fp32")}).to_json()
    for number in (float("nan"), float("inf")):
        with pytest.raises(BundleError, match="cannot be written"):
            replace(manifest_for({}), parity={"segmenter": {"relative_error": number}}).to_json()


def test_hashes_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_entry(tmp_path / "a", "calibration") == FileEntry("calibration", sha256_of(tmp_path / "a"), 3)


def test_a_file_is_verified_when_it_is_asked_for_and_not_before(bundle: Path) -> None:
    altered = bundle / "segmenter.onnx"
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    opened = open_bundle(bundle)
    assert opened.file("text_encoder") == bundle / "text_encoder.onnx"
    with pytest.raises(BundleError, match=r"segmenter\.onnx has another SHA-256.*export it again"):
        opened.file("segmenter")


def test_external_weights_are_verified_with_their_graph(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", external=True)
    weights = bundle / "text_encoder.onnx.data"
    assert weights.stat().st_size > 100_000
    with Segmenter.load(bundle, device="cpu", threads=1) as segmenter:
        segmenter.encode("a man")
    with open(weights, "r+b") as stream:
        stream.write(b"\xff\xff\xff\xff")
    assert "text_encoder.onnx.data has another SHA-256" in refusal(bundle)
    weights.unlink()
    assert "text_encoder.onnx.data is missing" in refusal(bundle)


def test_an_onnx_file_stands_for_its_bundle(bundle: Path) -> None:
    assert open_bundle(bundle / "segmenter.onnx").selected == "segmenter.onnx"
    assert Segmenter.load(bundle / "segmenter.onnx", device="cpu", threads=1).precision == "fp32"
    assert "text_encoder" in refusal(bundle / "text_encoder.onnx")
    shutil.copy(bundle / "segmenter.onnx", bundle / "other.onnx")
    assert "not listed" in refusal(bundle / "other.onnx")


def test_a_precision_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no segmenter of precision fp16: it has fp32"):
        Segmenter.load(bundle, precision="fp16")
    with pytest.raises(BundleError, match="is of precision fp32, not fp16"):
        Segmenter.load(bundle / "segmenter.onnx", precision="fp16")


def test_an_image_graph_of_another_precision_uses_the_fp32_text_encoder(bundle: Path) -> None:
    shutil.copy(bundle / "segmenter.onnx", bundle / "segmenter.fp16.onnx")
    data = json.loads((bundle / "lavt.json").read_text())
    edit(
        bundle, files={**data["files"], "segmenter.fp16.onnx": {**data["files"]["segmenter.onnx"], "precision": "fp16"}}
    )
    for segmenter in (Segmenter.load(bundle, precision="fp16"), Segmenter.load(bundle / "segmenter.fp16.onnx")):
        assert segmenter.precision == "fp16"
        assert segmenter.encode("a man").prompt.shape == (20, 8)
    assert Segmenter.load(bundle).precision == "fp32"


def test_paths_that_are_no_bundle(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith("no such bundle")
    (tmp_path / "folder").mkdir()
    assert "is not a bundle (it has no lavt.json)" in refusal(tmp_path / "folder")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert "is not a bundle" in refusal(tmp_path / "photo.jpg")
    (tmp_path / "folder" / "model.engine").write_bytes(b"x")
    assert "is not a bundle (it has no lavt.json)" in refusal(tmp_path / "folder" / "model.engine")
    assert "bundle" in refusal("a\0b")
    refusal("x" * 5000)


@pytest.mark.parametrize(
    "text",
    ["", "{", "nonsense", "\x00", '{"format_version": NaN}', "[" * 100_000, '{"format_version": 1' + "0" * 5000 + "}"],
)
def test_a_manifest_that_is_not_json(bundle: Path, text: str) -> None:
    (bundle / "lavt.json").write_text(text)
    assert "lavt.json is not valid JSON" in refusal(bundle)


def test_a_manifest_that_is_not_text_or_too_large(bundle: Path) -> None:
    (bundle / "lavt.json").write_bytes(b"\xff\xfe\xff")
    assert "not valid JSON" in refusal(bundle)
    with open(bundle / "lavt.json", "wb") as stream:
        stream.truncate(16 * 2**20 + 1)
    assert "is larger than" in refusal(bundle)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_format_version(bundle: Path, version: int) -> None:
    edit(bundle, format_version=version)
    assert f"has format version {version}, this lavt-edge reads version 1" in refusal(bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": True},
        {"format_version": "1"},
        {"format_version": 1.0},
        {"model": []},
        {"generator": None},
        {"checkpoint": {"name": "x", "sha256": "xyz"}},
        {"checkpoint": {"name": 5, "sha256": SHA}},
        {"files": [1]},
        {"files": {"segmenter.onnx": {"role": "segmenter", "sha256": SHA, "bytes": 1}}},
        {"files": {"x.onnx": {"role": "segmenter", "precision": "fp32", "sha256": SHA.upper(), "bytes": 1}}},
        {"files": {"x.onnx": {"role": "segmenter", "precision": "fp32", "sha256": SHA, "bytes": -1}}},
        {"files": {"x.json": {"role": "tokenizer", "sha256": SHA, "bytes": True}}},
        {"files": {f"{n}.json": {"role": "tokenizer", "sha256": SHA, "bytes": 1} for n in "ab"}},
        {"input": {"height": 0, "width": 32, "batch": 1, "max_words": 20, "prompt_channels": 8}},
        {"input": {"height": 24, "width": 10**9, "batch": 1, "max_words": 20, "prompt_channels": 8}},
        {"input": {"height": 24, "width": 32, "max_words": 20, "prompt_channels": 8}},
        {"input": {"height": 24, "width": 32, "batch": 0, "max_words": 20, "prompt_channels": 8}},
        {"input": {"height": 24, "width": 32, "batch": 1, "max_words": "20", "prompt_channels": 8}},
    ],
)
def test_wrong_types_and_ranges(bundle: Path, changes: dict[str, object]) -> None:
    edit(bundle, **changes)
    message = refusal(bundle)
    assert any(said in message for said in ("expected", "input.batch is missing", "precision"))


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "C:x", "a\0b", "a\nb", "x" * 300, "lavt.json"],
)
def test_file_names_that_are_no_plain_names(bundle: Path, name: str) -> None:
    edit(bundle, files={name: {"role": "segmenter", "precision": "fp32", "sha256": SHA, "bytes": 1}})
    assert "is not a plain file name" in refusal(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "segmenter.onnx", tmp_path / "outside.onnx")
    (bundle / "segmenter.onnx").symlink_to(tmp_path / "outside.onnx")
    assert "is a link that leaves the bundle" in refusal(bundle)


def test_a_link_to_the_bundle_is_fine(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert Segmenter.load(tmp_path / "link", device="cpu", threads=1).device == "cpu"


def test_files_that_are_missing_cut_or_not_files(bundle: Path) -> None:
    graph = bundle / "segmenter.onnx"
    with open(graph, "ab") as stream:
        stream.write(b"x")
    assert "bytes, lavt.json says" in refusal(bundle)
    graph.unlink()
    assert "segmenter.onnx is missing" in refusal(bundle)
    os.mkfifo(graph)
    assert "segmenter.onnx is missing" in refusal(bundle)
    data = json.loads((bundle / "lavt.json").read_text())
    del data["files"]["segmenter.onnx"]
    edit(bundle, files=data["files"])
    assert "has no segmenter of precision fp32" in refusal(bundle)


def test_a_tokenizer_that_is_none(bundle: Path) -> None:
    for content in (b"{}", b"\xff", b'{"version": "1.0"}', b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}}'):
        (bundle / "tokenizer.json").write_bytes(content)
        data = json.loads((bundle / "lavt.json").read_text())
        entry = file_entry(bundle / "tokenizer.json", "tokenizer")
        data["files"]["tokenizer.json"] = {"role": entry.role, "sha256": entry.sha256, "bytes": entry.bytes}
        edit(bundle, files=data["files"])
        assert "tokenizer" in refusal(bundle)


VALID = json.loads(manifest_for({"segmenter.onnx": FileEntry("segmenter", SHA, 1, "fp32")}).to_json())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(places(VALID)), value=JSON, remove=st.booleans())
def test_any_altered_manifest_parses_or_is_refused(place: tuple[object, ...], value: object, remove: bool) -> None:
    data = json.loads(json.dumps(VALID))
    if not place:
        data = value
    else:
        parent = data
        for key in place[:-1]:
            parent = parent[key]
        if remove:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
    problem = ""
    try:
        manifest = Manifest.parse(data)
    except BundleError as error:
        problem = str(error)
    if problem:
        assert len(problem.splitlines()) == 1
        return
    spec = manifest.input
    assert all(type(size) is int and size > 0 for size in (spec.height, spec.width, spec.max_words))
    assert spec.batch is None or (type(spec.batch) is int and spec.batch > 0)
    assert all("/" not in name and ".." not in name[:2] for name in manifest.files)
