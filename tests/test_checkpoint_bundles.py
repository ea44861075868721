"""What `lavt-export onnx` makes of checkpoints in other forms: the official form's bundle, file for file."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lavt_edge import cli
from lavt_edge._base.progress import Report
from lavt_edge._base.records import to_plain
from lavt_edge.benchmarks.evaluation.reference import load_reference
from lavt_edge.errors import CheckpointError
from lavt_edge.export import ExportOptions, bundle
from lavt_edge.export.source import open_source, peer_source
from lavt_edge.reference import LAVT
from lavt_edge.reference.config import TextConfig
from lavt_edge.reference.words import read_vocabulary, words_tokenizer
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.manifest import FileEntry
from lavt_edge.tests.checkpoint_forms import (
    BERT,
    NO_BERT,
    ONE,
    OTHERS,
    apart,
    bare,
    bert_folder,
    file,
    namespace,
    one,
    prefixed,
    safetensors,
)
from lavt_edge.tests.small_checkpoints import SMALL_TEXT, saved
from lavt_edge.tests.small_checkpoints import small_bert as small_bert  # a fixture
from transformers import BertTokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "small_bert")

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "man", *(f"w{i}" for i in range(52))]
ARGS = namespace(mha="1-2-4-2")
HEADS = ("--fusion-heads", "1-2-4-2")
BOTH = {name: prefixed("module.", state) for name, state in (("model", apart()["model"]), ("bert_model", BERT))}
COMPILED = {name: prefixed("_orig_mod.", state) for name, state in (("model", apart()["model"]), ("bert_model", BERT))}


@pytest.fixture
def export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs `lavt-export onnx` on a checkpoint of BERT's words in TOKENS; the lines that it prints."""
    words = tmp_path / "words.txt"
    words.write_text("\n".join(TOKENS) + "\n", encoding="utf-8")

    def run(output: Path, checkpoint: Path, *options: object) -> list[str]:
        words_option = () if "--vocabulary" in options else ("--vocabulary", words)
        command = ["onnx", "--checkpoint", checkpoint, "--output", output, *words_option, *options]
        monkeypatch.setattr(sys, "argv", ["lavt-export", *map(str, command)])
        with suppress(SystemExit):
            cli.export_main()
        captured = capsys.readouterr()
        return (captured.err + captured.out).splitlines()

    return run


@pytest.fixture
def graphs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of equal configuration and weights are exported once; those of `lavt_one` each time they are asked for."""
    export_graphs, made = bundle._export_graphs, dict[object, tuple[Path, dict[str, FileEntry]]]()

    def graphs_of(model: LAVT, folder: Path, options: ExportOptions, report: Report) -> dict[str, FileEntry]:
        weights = b"".join(name.encode() + value.numpy().tobytes() for name, value in model.state_dict().items())
        key = (model.config, options, hashlib.sha256(weights).digest())
        if key not in made or model.config.variant == "lavt_one":
            made[key] = tmp_path / f"graphs{len(made)}", export_graphs(model, folder, options, report)
            shutil.copytree(folder, made[key][0], dirs_exist_ok=True)
        kept, entries = made[key]
        for name in entries:
            shutil.copyfile(kept / name, folder / name)
        return dict(entries)

    monkeypatch.setattr(bundle, "_export_graphs", graphs_of)


def content(bundle: Path) -> dict[str, Any]:
    """Every file of a bundle, the manifest without the checkpoint's hash."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in bundle.iterdir()}
    manifest = json.loads(files.pop("lavt.json"))
    assert len(manifest["checkpoint"].pop("sha256")) == 64
    return {**files, "manifest": manifest}


@pytest.mark.usefixtures("graphs_once")
def test_other_forms_give_the_official_forms_bundle(tmp_path: Path, export: Callable[..., list[str]]) -> None:
    root = bert_folder({"model_type": "bert", "num_attention_heads": 2})(tmp_path)["bert"]
    (root / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    forms: dict[str, tuple[Callable[[Path], Path], tuple[object, ...]]] = {
        "official lavt": (file(apart(args=ARGS)), ()),
        "module. in both": (file(apart(**BOTH, args=vars(ARGS))), ()),
        "_orig_mod. in both": (file(apart(**COMPILED, args=ARGS)), ()),
        "no BERT": (file({**NO_BERT, "args": ARGS}), ("--bert", root)),
        "official lavt_one": (file(one(args=ARGS)), ()),
        "safetensors": (safetensors(bare(), "refcoco.pth"), HEADS),
    }
    made = {}
    for name, (write, options) in forms.items():
        folder = tmp_path / name
        folder.mkdir()
        printed = export(folder / "bundle", write(folder), "--image-size", "64", *options)
        assert len(printed) == 2, printed
        made[name] = content(folder / "bundle")
    assert made["official lavt"]["manifest"]["model"]["fusion_heads"] == [1, 2, 4, 2]
    assert {"segmenter.onnx", "text_encoder.onnx", "tokenizer.json"} < made["official lavt"].keys()
    for name in ("module. in both", "_orig_mod. in both", "no BERT"):
        assert made[name] == made["official lavt"], name
    assert made["safetensors"] == made["official lavt_one"]


def test_what_the_training_said_and_what_was_assumed_is_told(
    tmp_path: Path, export: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    path, bundle = saved(tmp_path / "a.pth", one(model_ema=OTHERS, args={"img_size": 64})), tmp_path / "bundle"
    first, _, averages, last = export(bundle, path)
    told = [record.getMessage() for record in caplog.records if record.name == "lavt_edge"]
    assert told == [f"{path}: heads assumed 1-1-1-1: no training arguments inside say them"]
    assert "lavt_one demo, 64x64 (args.img_size), " in first
    assert open_bundle(bundle).manifest.input.height == 64
    assert averages == "a.pth also has averaged parameters, model_ema: --ema uses them"
    assert last.startswith("heads assumed 1-1-1-1: a.pth does not say them")
    assert f"lavt-bench --engine {bundle} --dataset NAME" in last
    checkpoint = open_bundle(bundle).manifest.checkpoint
    assert checkpoint.note == "heads assumed 1-1-1-1"
    assert json.loads((bundle / "lavt.json").read_bytes())["checkpoint"]["note"] == checkpoint.note


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, export: Callable[..., list[str]]) -> None:
    wrong = saved(tmp_path / "wrong.pth", one(args={"mha": "", "img_size": "large"}))
    (line,) = export(tmp_path / "a", wrong)
    assert line == f"error: {wrong}: args.img_size is 'large'; say the size with --image-size"
    (line,) = export(tmp_path / "a", saved(tmp_path / "b.pth", NO_BERT))
    assert line.endswith("a LAVT without its text encoder; give the BERT that was trained with it with --bert")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("asked", "args", "expected"),
    [
        (None, {"mha": ""}, ((480, 480), "the published size, as the checkpoint says none")),
        (None, {"mha": "", "img_size": 384}, ((384, 384), "args.img_size")),
        ((480, 480), {"mha": "", "img_size": 384}, ((480, 480), "--image-size; trained at 384x384")),
        ((384, 384), {"mha": "", "img_size": 384}, ((384, 384), "--image-size")),
        ((384, 384), {"mha": ""}, ((384, 384), "--image-size")),
    ],
)
def test_which_size_is_taken(tmp_path: Path, asked: Any, args: dict[str, Any], expected: Any) -> None:
    assert open_source(saved(tmp_path / "a.pth", one(args=args))).choose_size(asked) == expected


def test_the_demo_model_is_asked_at_its_own_size() -> None:
    assert open_source(None).choose_size(None) == ((240, 240), "as the demo model was trained")
    assert open_source("demo").choose_size((480, 480)) == ((480, 480), "--image-size; trained at 240x240")


# the text encoder and its vocabulary


def test_the_vocabulary_of_berts_own_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("the\n", encoding="utf-8")
    assert open_source("a.pth", bert=tmp_path).vocabulary == tmp_path
    assert open_source("a.pth", bert=tmp_path, words=tmp_path / "x").vocabulary == tmp_path / "x"
    assert open_source("a.pth", bert=tmp_path / "x").vocabulary == open_source("a.pth").vocabulary


def test_a_vocabulary_of_another_length_is_refused(tmp_path: Path, export: Callable[..., list[str]]) -> None:
    path, short = saved(tmp_path / "a.pth", one()), tmp_path / "short.txt"
    short.write_text("\n".join(TOKENS[:-1]) + "\n", encoding="utf-8")
    (line,) = export(tmp_path / "bundle", path, "--vocabulary", short)
    assert line == ("error: the text encoder has 60 words and the vocabulary 59; give its own with --vocabulary")
    with pytest.raises(CheckpointError, match=r"has 60 words and bert-base-uncased's vocabulary 30522; give its own"):
        words_tokenizer(open_source(path).vocabulary, SMALL_TEXT)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[PAD]\n[UNK]\nthe\n", "the vocabulary has no [CLS]; give a BERT's, one token a line"),
        (b"\xff\xfe[PAD]", "not a vocabulary in UTF-8, one token a line (byte 0)"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, data: bytes | None, expected: str) -> None:
    path = tmp_path / "vocab.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(path)
    assert str(caught.value) == f"{path}: {expected}"


SENTENCES = ("The red Man", "红色的圆", "the RED 圆, 红", "Ein Über")
CHINESE = [
    "[PAD]",
    "[unused1]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "red",
    "man",
    "红",
    "色",
    "的",
    "圆",
    "u",
    "##ber",
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("more", "config", "lower"),
    [
        ([], None, True),
        (["The", "RED", "##M"], None, False),
        ([], {"do_lower_case": False}, False),
        (["The", "RED"], {"do_lower_case": True}, True),
    ],
)
def test_another_berts_words_are_cut_as_transformers_does(
    tmp_path: Path, more: list[str], config: dict[str, bool] | None, lower: bool, line_end: str
) -> None:
    path, tokens = tmp_path / "vocab.txt", [*CHINESE, *more]
    path.write_bytes("".join(token + line_end for token in tokens).encode())
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = words_tokenizer(path, TextConfig(vocab_size=len(tokens)))
    theirs = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=lower)
    for sentence in SENTENCES:
        assert ours.encode(sentence).ids == theirs(sentence)["input_ids"], sentence


# sources


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--fusion-heads", {"fusion_heads": (1, 1, 1, 1)}),
        ("--bert", {"bert": Path("x")}),
        ("--vocabulary", {"words": Path("x")}),
        ("--ema", {"ema": True}),
    ],
)
def test_the_demo_model_takes_no_option_of_a_checkpoint(option: str, given: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"^{option} is for a checkpoint, the demo model has its own"):
        open_source("demo", **given)


def test_a_bundle_of_averages_has_peers_of_averages(tmp_path: Path, demo_bundle: Path) -> None:
    path = saved(tmp_path / "a.pth", one(model=OTHERS, model_ema=bare()))
    source, manifest = open_source(path, ema=True), json.loads((demo_bundle / "lavt.json").read_bytes())
    manifest["checkpoint"] = to_plain(source.info())
    manifest["model"]["fusion_heads"] = [1, 1, 1, 1]
    assert manifest["checkpoint"]["ema"] is True
    (tmp_path / "lavt.json").write_text(json.dumps(manifest))
    peer = peer_source(open_bundle(tmp_path), str(path))
    assert peer == open_source(path, (1, 1, 1, 1), ema=True)
    assert peer.identity() != open_source(path, (1, 1, 1, 1)).identity()
    expected = ONE.state_dict()
    assert all((value == expected[key]).all() for key, value in peer.load().state_dict().items())


def test_evaluations_of_other_weights_or_words_are_other_runs(tmp_path: Path) -> None:
    averages, bare_lavt = saved(tmp_path / "a.pth", one(model=OTHERS, model_ema=bare())), saved(tmp_path / "b", NO_BERT)
    berts = [saved(tmp_path / f"{n}.bin", {**BERT, "pooler.dense.bias": torch.ones(24) * n}) for n in range(2)]
    words = [tmp_path / f"words{n}.txt" for n in range(2)]
    for path, tokens in zip(words, (TOKENS, [*TOKENS[:-1], "other"]), strict=True):
        path.write_text("\n".join(tokens), encoding="utf-8")
    sources = [
        *(open_source(averages, words=file, ema=ema) for file in words for ema in (False, True)),
        *(open_source(bare_lavt, bert=bert, words=words[0]) for bert in berts),
    ]
    records = [load_reference(source, image_size=(64, 64), device="cpu").describe() for source in sources]
    assert all(records.count(record) == 1 for record in records)
    assert len({source.identity() for source in sources}) == 4  # the words are not in a plain export
