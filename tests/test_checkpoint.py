"""Official checkpoints load as they are; anything else is refused with one line."""

from __future__ import annotations

import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lavt_edge import cli
from lavt_edge.errors import CheckpointError
from lavt_edge.reference import LAVT, LAVTConfig, load_checkpoint
from lavt_edge.tests.golden import golden_lavt, official_content
from lavt_edge.tests.small_checkpoints import (
    LATE_KEY,
    PROJECTION,
    SMALL,
    SMALL_APART,
    SMALL_TEXT,
    Call,
    refusal,
    saved,
)
from lavt_edge.tests.small_checkpoints import one as one  # a fixture
from lavt_edge.tests.small_checkpoints import small_bert as small_bert  # a fixture
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

BIAS_TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"


@pytest.fixture(scope="module", params=[SMALL, SMALL_APART], ids=["lavt_one", "lavt"])
def model(request: pytest.FixtureRequest) -> LAVT:
    return golden_lavt(request.param)


# what loads


@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.usefixtures("small_bert")
def test_both_kinds_load_with_and_without_pooler_and_computed_buffers(
    model: LAVT, tmp_path: Path, pooler: bool, buffers: bool
) -> None:
    path = saved(tmp_path / "official.pth", official_content(model, pooler=pooler, buffers=buffers))
    loaded = load_checkpoint(path)
    assert loaded.config == model.config
    assert not any(module.training for module in loaded.modules())
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.usefixtures("small_bert")
def test_files_of_before_torch_1_6_load(one: LAVT, tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", official_content(one), _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    assert torch.equal(load_checkpoint(path).state_dict()[PROJECTION], one.state_dict()[PROJECTION])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.usefixtures("small_bert")
def test_other_float_types_load_as_float32(one: LAVT, tmp_path: Path, dtype: torch.dtype) -> None:
    content = official_content(one)
    content["model"] = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in content["model"].items()
    }
    loaded = load_checkpoint(saved(tmp_path / "half.pth", content)).state_dict()[PROJECTION]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, one.state_dict()[PROJECTION].to(dtype).float())


@pytest.mark.usefixtures("small_bert")
def test_parameters_stay_when_the_file_goes(one: LAVT, tmp_path: Path) -> None:
    """The file is memory-mapped while it is read, not longer."""
    path = saved(tmp_path / "official.pth", official_content(one))
    loaded = load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded.state_dict()[PROJECTION], one.state_dict()[PROJECTION])


def shapes_only(config: LAVTConfig, *, mha: str = "") -> dict[str, Any]:
    """An official checkpoint of a model of zeros, each tensor of which stores a single number."""
    with torch.device("meta"):
        model = LAVT(config)
    content = official_content(model, buffers=False, mha=mha)
    for name in {"model", "bert_model"} & content.keys():
        content[name] = {
            key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in content[name].items()
        }
    return content


@pytest.mark.parametrize(
    ("swin", "window", "heads"),
    [("tiny", 7, 1), ("tiny", 12, 4), ("small", 12, 1), ("base", 7, 4), ("base", 12, 1), ("large", 12, 4)],
)
@pytest.mark.usefixtures("small_bert")
def test_swin_type_window_and_heads_are_read_off_the_file(tmp_path: Path, swin: str, window: int, heads: int) -> None:
    config = LAVTConfig(swin=swin, window=window, fusion_heads=(heads,) * 4, variant="lavt", text=SMALL_TEXT)
    content = shapes_only(config, mha=f"{heads}-{heads}-{heads}-{heads}")
    assert load_checkpoint(saved(tmp_path / "official.pth", content)).config == config


def test_bert_is_bert_base(tmp_path: Path) -> None:
    config = LAVTConfig(swin="tiny", window=7, variant="lavt_one")
    assert load_checkpoint(saved(tmp_path / "official.pth", shapes_only(config))).config == config


@pytest.mark.parametrize("mha", ["", None])
@pytest.mark.usefixtures("small_bert")
def test_an_empty_mha_means_one_head_per_stage(one: LAVT, tmp_path: Path, mha: str | None) -> None:
    path = saved(tmp_path / "official.pth", official_content(one, mha=mha))
    assert load_checkpoint(path).config.fusion_heads == (1, 1, 1, 1)
    assert load_checkpoint(path, fusion_heads=(1, 1, 1, 1)).config.fusion_heads == (1, 1, 1, 1)


@pytest.mark.usefixtures("small_bert")
def test_heads_come_from_the_option_where_the_file_does_not_say(
    one: LAVT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = official_content(one)
    del content["args"]
    path = saved(tmp_path / "bare.pth", content)
    assert load_checkpoint(path, fusion_heads=(1, 2, 4, 2)).config.fusion_heads == (1, 2, 4, 2)
    assert not caplog.records
    assert load_checkpoint(path).config.fusion_heads == (1, 1, 1, 1)
    assert "heads assumed 1-1-1-1" in caplog.text


# what is refused


@pytest.mark.usefixtures("small_bert")
def test_an_option_that_contradicts_the_file_is_refused(one: LAVT, tmp_path: Path) -> None:
    path = saved(tmp_path / "official.pth", official_content(one, mha="2-2-2-2"))
    assert refusal(path, fusion_heads=(1, 1, 1, 1)) == "trained with PWAM heads 2-2-2-2; leave the option out"


@pytest.mark.parametrize("mha", ["4-4-4", "a-b-c-d", "0-1-1-1", "-1-1-1-1", "7-7-7-7", "1-1-1-1-1", "9" * 5000, 4, [1]])
@pytest.mark.usefixtures("small_bert")
def test_heads_that_cannot_be_are_refused(one: LAVT, tmp_path: Path, mha: Any) -> None:
    message = refusal(saved(tmp_path / "official.pth", official_content(one, mha=mha)))
    assert "mha" in message or "heads" in message


@pytest.mark.usefixtures("small_bert")
def test_an_option_that_does_not_divide_the_channels_is_refused(one: LAVT, tmp_path: Path) -> None:
    content = official_content(one)
    del content["args"]
    assert "7, 1, 1, 1" in refusal(saved(tmp_path / "bare.pth", content), fusion_heads=(7, 1, 1, 1))


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["model"].pop(key)


def put(key: str, value: Callable[[Tensor], object]) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        content["model"][key] = value(content["model"].get(key, torch.zeros(1)))

    return change


def at(key: str, entry: float) -> Callable[[dict[str, Any]], object]:
    return put(key, lambda value: value.clone().index_fill_(0, torch.tensor([1]), entry))


BERT_KEY = "text_encoder.encoder.layer.0.output.dense.weight"
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no projection": (drop(PROJECTION), f"key '{PROJECTION}' is missing"),
    "no bias table": (drop(BIAS_TABLE), f"key '{BIAS_TABLE}' is missing"),
    "no late key": (drop(LATE_KEY), f"key '{LATE_KEY}' is missing"),
    "no BERT key": (drop(BERT_KEY), f"key '{BERT_KEY}' is missing"),
    "unknown key": (put("backbone.extra.weight", lambda _: torch.zeros(2)), "key 'backbone.extra.weight' is not part"),
    "one block more": (
        put("backbone.layers.0.blocks.9.norm1.weight", lambda _: torch.zeros(2)),
        "key 'backbone.layers.0.blocks.9.norm1.weight' is not part",
    ),
    "shape": (put(LATE_KEY, lambda value: value[:-1]), f"key '{LATE_KEY}' has shape"),
    "transposed": (put(BERT_KEY, lambda value: value.T), f"key '{BERT_KEY}' has shape [40, 24]; expected [24, 40]"),
    "scalar": (put(PROJECTION, lambda _: torch.zeros(())), f"key '{PROJECTION}' has shape []; expected 4 dimensions"),
    "foreign width": (
        put(PROJECTION, lambda _: torch.zeros(77, 3, 4, 4)),
        "has 77 channels; no Swin type has that many",
    ),
    "even window table": (put(BIAS_TABLE, lambda _: torch.zeros(144, 1)), "has 144 rows"),
    "odd window table": (put(BIAS_TABLE, lambda _: torch.zeros(170, 1)), "has 170 rows"),
    "one row": (put(BIAS_TABLE, lambda _: torch.zeros(1, 1)), "has 1 rows"),
    "huge window": (put(BIAS_TABLE, lambda _: torch.zeros(1, 1).expand(999**2, 1)), f"key '{BIAS_TABLE}' has"),
    "NaN": (at(LATE_KEY, float("nan")), f"key '{LATE_KEY}' holds NaN or infinity"),
    "infinity": (at(LATE_KEY, float("-inf")), f"key '{LATE_KEY}' holds NaN or infinity"),
    "integers": (put(LATE_KEY, lambda value: value.long()), f"key '{LATE_KEY}' has type torch.int64"),
    "complex": (put(LATE_KEY, lambda value: value.to(torch.complex64)), f"key '{LATE_KEY}' has type torch.complex64"),
    "float8": (put(LATE_KEY, lambda value: value.to(torch.float8_e4m3fn)), f"key '{LATE_KEY}' has type torch.float8"),
    "sparse": (put(LATE_KEY, lambda value: value.to_sparse()), f"'{LATE_KEY}' is not a dense tensor"),
    "meta": (put(LATE_KEY, lambda value: value.to("meta")), f"'{LATE_KEY}'"),
    "text": (put(LATE_KEY, lambda _: "weights"), f"'{LATE_KEY}' is not a dense tensor"),
    "key that is no text": (lambda content: content["model"].update({7: torch.zeros(1)}), "'model' entry '7'"),
    "key of two lines": (put("backbone.a\nb", lambda _: torch.zeros(1)), "is not part of LAVT"),
    "no model": (lambda content: content.pop("model"), "key 'model' is missing"),
    "model is a list": (lambda content: content.update(model=[1]), "'model' is a list; expected a dict of tensors"),
    "empty model": (lambda content: content.update(model={}), "421 of LAVT's 421 keys are missing, such as"),
    "bert_model is a tensor": (
        lambda content: content.update(model={}, bert_model=torch.zeros(1)),
        "'bert_model' is a Tensor; expected a dict of tensors",
    ),
}


@pytest.mark.parametrize(("change", "expected"), WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("small_bert")
def test_a_file_with_something_wrong_is_refused_by_the_name_of_its_key(
    one: LAVT, tmp_path: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    content = official_content(one)
    change(content)
    assert expected in refusal(saved(tmp_path / "wrong.pth", content))


@pytest.mark.usefixtures("small_bert")
def test_a_key_of_berts_own_entry_is_named_as_the_file_spells_it(tmp_path: Path) -> None:
    content = official_content(golden_lavt(SMALL_APART))
    del content["bert_model"]["embeddings.LayerNorm.bias"]
    assert refusal(saved(tmp_path / "wrong.pth", content)) == ("key 'bert_model: embeddings.LayerNorm.bias' is missing")
    del content["bert_model"]
    assert "key 'bert_model' is missing" in refusal(saved(tmp_path / "wrong.pth", content))


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), None, "text", {}, {"optimizer": {}}], ids=repr)
def test_other_torch_files_are_refused(tmp_path: Path, content: object) -> None:
    assert "key 'model' is missing" in refusal(saved(tmp_path / "other.pth", content))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.usefixtures("small_bert")
def test_a_truncated_file_is_refused(one: LAVT, tmp_path: Path, legacy: bool) -> None:
    path = saved(tmp_path / "whole.pth", official_content(one), _use_new_zipfile_serialization=not legacy)
    whole, cut = path.read_bytes(), tmp_path / "cut.pth"
    size = len(whole)
    for length in (0, 1, 3, 4, 10, 64, 1000, 50_000, size // 2, size - 5000, size - 100, size - 1):
        cut.write_bytes(whole[:length])
        assert "not a readable torch checkpoint" in refusal(cut) or "refused" in refusal(cut), length


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"<!DOCTYPE html>\n<html>Quota exceeded</html>",
        np.random.default_rng(0).bytes(10_000),
        b"PK\x03\x04" + np.random.default_rng(1).bytes(10_000),
        b"\x80\x02" + np.random.default_rng(2).bytes(10_000),
    ],
    ids=["pointer", "web page", "random", "random zip", "random pickle"],
)
def test_what_is_no_torch_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    refusal(path)


def test_an_ordinary_zip_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a readable torch checkpoint" in refusal(tmp_path / "checkpoint.pth")


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pth")


@pytest.mark.usefixtures("small_bert")
def test_a_damaged_header_is_refused_or_harmless(one: LAVT, tmp_path: Path) -> None:
    """Bytes of the pickle that describes the tensors, changed at random: a model or a CheckpointError, nothing else."""
    path = saved(tmp_path / "whole.pth", official_content(one, optimizer_bytes=8))
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
        header = archive.read(entry)
    whole = path.read_bytes()
    start, rng = whole.index(header), np.random.default_rng(0)
    refused = 0
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[start + int(rng.integers(len(header)))] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second line
        refusal(path)


# what the command says


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that `lavt-export` prints, with exit code 1, for arguments that it refuses."""
    monkeypatch.setattr(sys, "argv", ["lavt-export", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.export_main()
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("kind", ["malicious", "truncated", "missing key", "wrong shape", "no such file"])
@pytest.mark.usefixtures("small_bert")
def test_the_command_refuses_with_one_line_and_writes_nothing(
    one: LAVT, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output, sentinel = tmp_path / "file.pth", tmp_path / "bundle", tmp_path / "sentinel"
    content = official_content(one)
    if kind == "malicious":
        content["optimizer"] = Call(os.system, f"touch {sentinel}")
    elif kind == "missing key":
        del content["model"][LATE_KEY]
    elif kind == "wrong shape":
        content["model"][LATE_KEY] = torch.zeros(1)
    if kind != "no such file":
        saved(path, content)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    before = sorted(tmp_path.iterdir())
    line = command_line(monkeypatch, capsys, "onnx", "--checkpoint", path, "--output", output)
    assert str(path) in line
    assert LATE_KEY in line or kind not in ("missing key", "wrong shape")
    assert sorted(tmp_path.iterdir()) == before
