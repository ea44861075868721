"""A bounded form of the inputs that `make stress` tries: every answer is a result or one line; and what was mended."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lavt_edge._base import strict_json
from lavt_edge._base.files import write_whole
from lavt_edge.errors import BundleError, CheckpointError, ExitCode, ImageError, LavtError, PromptError
from lavt_edge.reference import LAVTConfig, TextConfig
from lavt_edge.reference.demo import load_demo
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.images import to_rgb_array
from lavt_edge.runtime.tokenizer import SentenceTokenizer, build_tokenizer
from lavt_edge.tests.runtime_bundle import VOCAB, write_bundle
from lavt_edge.tests.stress import cases
from lavt_edge.tests.stress.cases import ODD_VALUES, attempt, damaged, damaged_json, try_cases
from lavt_edge.tests.stress.inputs import KINDS, run_kind
from PIL import Image

CASES = {
    "images in memory": 600,
    "arrays": 2000,
    "frames": 1000,
    "image files": 600,
    "image bombs": 25,
    "sentences": 400,
    "sentences to masks": 200,
    "captions": 150,
    "bundle files": 250,
    "bundle manifests": 250,
    "bundle tokenizers": 60,
    "bundle graphs": 60,
    "bundle changes on failing disks": 80,
    "lavt-run": 100,
    "checkpoint files": 10,
    "checkpoint contents": 10,
    "demo weights": 30,
    "calibrations": 400,
    "calibration states": 300,
    "results of sentences": 400,
    "baselines": 500,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_answered_with_a_result_or_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUST_BACKTRACE", "0")
    assert run_kind(kind, CASES[kind], 0, tmp_path) == CASES[kind]


# the means themselves


def test_a_wrong_answer_says_how_to_have_it_again() -> None:
    def case(rng: np.random.Generator) -> None:
        if rng.integers(1000) < 100:
            raise KeyError("x")

    with pytest.raises(AssertionError, match=r"kind: seed 3, case \d+: KeyError: 'x'\nagain: .*--seed 3 --case \d+"):
        try_cases("kind", case, 1000, 3)


def test_what_hangs_is_found_though_the_alarm_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a decoder's every error is by `to_rgb_array`, which makes an answer of it."""

    def case(rng: np.random.Generator) -> None:
        with suppress(Exception):
            time.sleep(20)

    monkeypatch.setattr(cases, "LIMIT", 0.5)
    with pytest.raises(AssertionError, match=r"case 0: AssertionError: no answer after 0\.5 seconds"):
        try_cases("kind", case, 1, 0)


def test_code_that_no_alarm_interrupts_ends_with_its_stack() -> None:
    script = (
        "from collections import deque\n"
        "from itertools import repeat\n"
        "from lavt_edge.tests.stress import cases\n"
        "cases.LIMIT = 0.2\n"
        "cases.try_cases('kind', lambda rng: deque(repeat(0), maxlen=0), 1, 0, watchdog=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:00.8")
    assert "in try_cases" in done.stderr


def test_an_answer_of_several_lines_or_of_another_error_is_wrong() -> None:
    class CarelessError(LavtError):
        def __str__(self) -> str:
            return "one\ntwo"

    def raises(error: Exception) -> object:
        raise error

    with pytest.raises(AssertionError, match="more than one line"):
        attempt(lambda: raises(CarelessError()))
    with pytest.raises(AssertionError, match="without a message"):
        attempt(lambda: raises(LavtError()))
    with pytest.raises(ImageError):
        attempt(lambda: raises(ImageError("x")), PromptError)


def test_damage_is_damage_and_the_same_for_the_same_seed() -> None:
    data = bytes(range(256)) * 8
    made = [damaged(data, np.random.default_rng([0, i])) for i in range(200)]
    assert sum(one != data for one in made) > 180
    assert made == [damaged(data, np.random.default_rng([0, i])) for i in range(200)]
    value = {"format_version": 1, "files": {"a": [1, 2.5]}}
    texts = [damaged_json(value, np.random.default_rng([0, i])) for i in range(300)]
    assert sum(text != json.dumps(value).encode() for text in texts) > 250
    assert any(len(text) > 10_000 for text in texts)


# images


STARTS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0")


@settings(max_examples=150, deadline=None)
@given(st.tuples(st.sampled_from(STARTS), st.binary(max_size=400)).map(b"".join))
def test_any_bytes_are_an_image_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    answer = attempt(lambda: to_rgb_array(path), ImageError)
    assert isinstance(answer, ImageError) or answer.shape[2] == 3


def test_arrays_have_the_limit_of_files() -> None:
    """Views that claim to be large need no memory until they are copied."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    with pytest.raises(ImageError, match=f"more than {limit} pixels"):
        to_rgb_array(np.broadcast_to(np.zeros(3, np.uint8), (20_000, 20_000, 3)))


def test_an_image_that_memory_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(ImageError, match="does not fit in memory"):
        to_rgb_array(tmp_path / "a.png")


# the text of a file or a sentence


def test_a_tokenizer_that_panics_is_refused() -> None:
    """Its vocabulary has no [CLS] under the id that its template names: the library's panic is no Exception."""
    data = json.loads(build_tokenizer(VOCAB).to_str())
    data["post_processor"]["special_tokens"] = {}
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        SentenceTokenizer.from_json(json.dumps(data).encode())


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | NUMBERS | st.text(), st.lists))
def test_json_is_read_as_python_reads_it(value: object) -> None:
    assert strict_json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[-1e400]", "[" * 100_000, "1" * 5000, b"\xff", "", "{"])
def test_what_json_does_not_have_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        strict_json.loads(text)


def test_an_infinite_number_in_a_manifest_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """Not when the manifest is next written, after a calibration of minutes."""
    bundle = write_bundle(tmp_path / "bundle")
    text = (bundle / "lavt.json").read_text()
    (bundle / "lavt.json").write_text(text.replace('"cases": 6', '"cases": 1e999'))
    with pytest.raises(BundleError, match="1e999 is not a JSON number"):
        open_bundle(bundle)
    (bundle / "lavt.json").write_text(text.replace('"segmenter": {\n   "rel', '"x": 5, "segmenter": {\n   "rel'))
    with pytest.raises(BundleError, match=r"parity\.x: expected an object"):
        open_bundle(bundle)


# models


@pytest.mark.parametrize("changes", [{"window": 10**6}, {"max_words": 10**9}, {"window": 1}])
def test_a_configuration_of_another_size_than_any_model_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LAVTConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vocab_size", "num_layers", "hidden_size", "max_positions"])
@pytest.mark.parametrize("value", [0, 10**9, 1.5, "1", None])
def test_a_text_encoder_of_another_size_than_any_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"text.{name}"):
        TextConfig(**{name: value})  # type: ignore[arg-type]


def test_weights_of_another_size_than_their_configuration_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    from lavt_edge.reference.config import DEMO_WEIGHTS

    data = DEMO_WEIGHTS.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    config = json.loads(header["__metadata__"]["config"])
    config["text"] |= {"vocab_size": 1_000_000, "hidden_size": 60_000}  # 240 GB
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    start = 8 + int.from_bytes(data[:8], "little")
    (tmp_path / "demo.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    with pytest.raises(CheckpointError, match="tensors of another model"):
        load_demo(tmp_path / "demo.safetensors")


# what lavt-run says


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lavt-run")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_a_decoder_prints_by_itself_is_kept_back(tmp_path: Path) -> None:
    """libtiff says on stderr what it dislikes, beside the error that Pillow raises."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "TIFF", compression="tiff_deflate")
    data = bytearray(stream.getvalue())
    data[400:420] = bytes(20)
    (tmp_path / "a.tiff").write_bytes(data)
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(ImageError):
        to_rgb_array(tmp_path / "a.tiff")
    done = run_command(bundle, tmp_path / "a.tiff", "the man", "-o", tmp_path / "o.png")
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.REFUSED, 1), done.stderr


def test_a_bundle_and_an_output_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: the picture does not fit, nothing of it stays."""
    bundle, image = write_bundle(tmp_path / "bundle"), tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    (tmp_path / "out").mkdir()
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from lavt_edge.cli import run_main\n"
        "run_main()"
    )
    command = [sys.executable, "-c", script, bundle, image, "the man", "-o", tmp_path / "out" / "o.png"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.REFUSED, 1), done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert not any((tmp_path / "out").iterdir())


def test_values_that_are_put_in_cover_every_type_of_json() -> None:
    assert {type(value) for value in ODD_VALUES} == {type(None), bool, int, float, str, list, dict}
    assert os.environ.get("LAVT_EDGE_TRACEBACK") is None


@pytest.mark.parametrize(("code", "written"), [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, written: bool
) -> None:
    """Some file systems have no such thing, some folders may only be written to; a broken disk is said."""
    fsync = os.fsync

    def refuses(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses)
    with nullcontext() if written else pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "out", b"x")
    assert (tmp_path / "out").read_bytes() == b"x"
