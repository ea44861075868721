"""The forms in which people have checkpoints, made small, and what each gives: the same model, or a line that helps."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from lavt_edge.reference import LAVT
from lavt_edge.tests.golden import golden_lavt, official_content
from lavt_edge.tests.small_checkpoints import SMALL, SMALL_APART, saved
from safetensors.torch import save_file
from torch import Tensor, nn

Content = dict[str, Any]
ONE, APART = golden_lavt(SMALL), golden_lavt(SMALL_APART)
WORDS = "text_encoder.embeddings.word_embeddings.weight"
COUNTER = "num_batches_tracked"


def one(**more: Any) -> Content:
    return {**official_content(ONE), **more}


def apart(**more: Any) -> Content:
    return {**official_content(APART), **more}


def bare() -> dict[str, Tensor]:
    """The state dict of a lavt_one, and nothing else."""
    return dict(official_content(ONE)["model"])


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def flat() -> dict[str, Tensor]:
    """A lavt and its BERT as one dict of tensors."""
    content = apart()
    return {**prefixed("model.", content["model"]), **prefixed("bert_model.", content["bert_model"])}


def without(content: Content, *names: str) -> Content:
    return {name: value for name, value in content.items() if name not in names}


def counters(change: Callable[[Tensor], Tensor] | None) -> Content:
    state = {key: value for key, value in bare().items() if change is not None or not key.endswith(COUNTER)}
    return one(
        model={key: change(value) if change and key.endswith(COUNTER) else value for key, value in state.items()}
    )


def file(content: object, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: saved(folder / "refcoco.pth", content, **options)


def safetensors(state: dict[str, Tensor], name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
        return folder / name

    return write


def renamed(content: object, old: bytes, new: bytes) -> Callable[[Path], Path]:
    """A file in which another version of a package had another name for its module."""

    def write(folder: Path) -> Path:
        path = saved(folder / "refcoco.pth", content, _use_new_zipfile_serialization=False)
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        return path

    return write


def namespace(**args: Any) -> argparse.Namespace:
    return argparse.Namespace(model="lavt", lr=5e-5, **args)


def bert_file(state: dict[str, Tensor], name: str = "bert.bin") -> Callable[[Path], Content]:
    return lambda folder: {"bert": saved(folder / name, state)}


def bert_folder(
    config: Content, state: dict[str, Tensor] | None = None, name: str = "model.safetensors"
) -> Callable[[Path], Content]:
    def write(folder: Path) -> Content:
        root = folder / "bert"
        root.mkdir()
        (root / "config.json").write_text(json.dumps(config))
        safetensors(dict(apart()["bert_model"]) if state is None else state, name)(root)
        return {"bert": root}

    return write


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT as its own training saved it: under `bert.`, with the heads of that, by the norms' old names."""
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
    }
    return {**prefixed("bert.", old), "cls.predictions.bias": torch.zeros(60)}


@dataclass(frozen=True)
class Form:
    """A file and the options that it is opened with; the heads, size and notes that it gives."""

    write: Callable[[Path], Path]
    variant: str = "lavt_one"
    heads: tuple[int, ...] = (1, 1, 1, 1)
    size: tuple[int, int] | None = None
    assumed: bool = False
    options: Callable[[Path], Content] = field(default=lambda _: {})


BERT = dict(apart()["bert_model"])
TWOS, HEADS = "1-2-4-2", (1, 2, 4, 2)
NO_BERT = without(apart(), "bert_model")
OTHERS = {key: value + 1 if value.is_floating_point() else value for key, value in bare().items()}
NUMBERS = {
    "best_oIoU": np.float64(72.73),
    "mean": np.float32(0.5),
    "step": np.int64(9),
    "done": np.bool_(True),
    "name": np.str_("x"),
}
PATHS = {"resume": Path("checkpoints/last.pth"), "root": PureWindowsPath(r"C:\data"), "other": PurePosixPath("/data")}

FORMS = {
    "official lavt": Form(file(apart()), "lavt"),
    "official lavt_one": Form(file(one())),
    "before torch 1.6": Form(file(apart(), _use_new_zipfile_serialization=False), "lavt"),
    "args a Namespace": Form(file(one(args=namespace(mha=TWOS))), heads=HEADS),
    "args a dict": Form(file(one(args=vars(namespace(mha=TWOS)))), heads=HEADS),
    "args an OrderedDict": Form(file(one(args=OrderedDict(mha=TWOS))), heads=HEADS),
    "args a dict, no heads": Form(file(one(args={"mha": None}))),
    "args a dict that says none": Form(file(one(args={"lr": 1e-5})), assumed=True),
    "args a Namespace that says none": Form(file(one(args=namespace())), assumed=True),
    "args as text": Form(file(one(args="Namespace(mha='4-4-4-4')")), assumed=True),
    "no args": Form(file(without(one(), "args")), assumed=True),
    "heads by an option": Form(file(without(one(), "args")), heads=HEADS, options=lambda _: {"fusion_heads": HEADS}),
    "args.img_size": Form(file(one(args=namespace(mha="", img_size=384))), size=(384, 384)),
    "args.img_size in a dict": Form(file(one(args={"mha": "", "img_size": 384})), size=(384, 384)),
    "args.img_size of numpy": Form(file(one(args={"mha": "", "img_size": np.int64(384)})), size=(384, 384)),
    "args.img_size two numbers": Form(file(one(args={"mha": "", "img_size": [320, 640]})), size=(320, 640)),
    "module. in model": Form(file(apart(model=prefixed("module.", apart()["model"]))), "lavt"),
    "module. in bert_model": Form(file(apart(bert_model=prefixed("module.", BERT))), "lavt"),
    "module. in both": Form(
        file(apart(model=prefixed("module.", apart()["model"]), bert_model=prefixed("module.", BERT))), "lavt"
    ),
    "_orig_mod. in both": Form(
        file(apart(model=prefixed("_orig_mod.", apart()["model"]), bert_model=prefixed("_orig_mod.", BERT))), "lavt"
    ),
    "_orig_mod.module.": Form(file(one(model=prefixed("_orig_mod.module.", bare())))),
    "module._orig_mod.": Form(file(one(model=prefixed("module._orig_mod.", bare())))),
    "a compiled part": Form(
        file(one(model={key.replace("backbone.", "backbone._orig_mod."): value for key, value in bare().items()}))
    ),
    "bare lavt_one": Form(file(bare()), assumed=True),
    "bare lavt_one of a module": Form(file(ONE.state_dict()), assumed=True),
    "state_dict": Form(file({"state_dict": bare(), "epoch": 3, "args": {"mha": TWOS}}), heads=HEADS),
    "model_state_dict": Form(file({"model_state_dict": bare()}), assumed=True),
    "state_dict of a Lightning module": Form(file({"state_dict": prefixed("model.", bare())}), assumed=True),
    "lavt in one dict": Form(file(flat()), "lavt", assumed=True),
    "safetensors": Form(safetensors(bare(), "refcoco.safetensors"), assumed=True),
    "safetensors called .pth": Form(safetensors(bare(), "refcoco.pth"), assumed=True),
    "safetensors of a lavt": Form(safetensors(flat(), "refcoco.safetensors"), "lavt", assumed=True),
    "model beside model_ema": Form(file(one(model_ema=OTHERS))),
    "model_ema": Form(file(one(model=OTHERS, model_ema=bare())), options=lambda _: {"ema": True}),
    "model_ema alone": Form(file(without(one(model_ema=bare()), "model")), options=lambda _: {"ema": True}),
    "model_ema of torch": Form(
        file(one(model=OTHERS, model_ema={**prefixed("module.", bare()), "n_averaged": torch.tensor(7)})),
        options=lambda _: {"ema": True},
    ),
    "state_dict_ema": Form(
        file({"state_dict": OTHERS, "state_dict_ema": bare()}), assumed=True, options=lambda _: {"ema": True}
    ),
    "model_ema of a lavt": Form(
        file(apart(model={}, model_ema=apart()["model"])), "lavt", options=lambda _: {"ema": True}
    ),
    "numpy's numbers": Form(file(one(**NUMBERS))),
    "numpy 1's numbers": Form(renamed(one(**NUMBERS), b"numpy._core.multiarray", b"numpy.core.multiarray")),
    "numpy's arrays": Form(file(one(precision=np.arange(5.0), names=np.array(["a", None], object)))),
    "paths": Form(file(one(**PATHS, args=namespace(mha=TWOS, output_dir=Path("out")))), heads=HEADS),
    "paths of Python 3.13": Form(renamed(one(**PATHS), b"cpathlib\n", b"cpathlib._local\n")),
    "no num_batches_tracked": Form(file(counters(None))),
    "num_batches_tracked of floats": Form(file(counters(lambda value: value.float()))),
    "num_batches_tracked of one side": Form(file(counters(lambda value: value.to(torch.int32)[None]))),
    "BERT in a file": Form(file(NO_BERT), "lavt", options=bert_file(BERT)),
    "BERT in another checkpoint": Form(file(NO_BERT), "lavt", options=bert_file(apart())),
    "BERT as published": Form(file(NO_BERT), "lavt", options=bert_file(published(BERT))),
    "BERT in safetensors": Form(
        file(NO_BERT), "lavt", options=lambda folder: {"bert": safetensors(BERT, "bert.safetensors")(folder)}
    ),
    "BERT in a folder": Form(
        file(NO_BERT), "lavt", options=bert_folder({"model_type": "bert", "num_attention_heads": 2})
    ),
    "BERT for a bare lavt": Form(file(NO_BERT["model"]), "lavt", assumed=True, options=bert_file(BERT)),
}


# what is refused, and what it is told


def text(content: bytes, name: str = "refcoco.pth") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def rmsin() -> Content:
    """A LAVT in whose decoder convolutions rotate: six more keys each, two fewer."""
    state = {key: value for key, value in bare().items() if not key.startswith("classifier.conv1_4")}
    for name in ("conv1_4", "conv2_4"):
        for part in ("dwc.weight", "norm.weight", "norm.bias", "fc_alpha.weight", "fc_alpha.bias", "fc_theta.weight"):
            state[f"classifier.{name}.routing.{part}"] = torch.zeros(2)
    return one(model=state)


class Alone(nn.Module):
    """Swin's own file: the backbone without the name that LAVT gives it."""

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        self.layers = model.backbone.layers
        self.patch_embed = model.backbone.patch_embed


PAGE = b"<!DOCTYPE html><html><title>Quota exceeded</title><body>Too many users have viewed this file</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1210000000\n"
SIXTEEN = {"model_type": "bert", "num_attention_heads": 16}
REFUSED: dict[str, tuple[Form, str]] = {
    "a web page": (Form(text(PAGE)), "refcoco.pth: a web page, not a checkpoint: the download is incomplete"),
    "a web page with a mark": (Form(text(b"\xef\xbb\xbf\r\n  " + PAGE)), "a web page, not a checkpoint"),
    "a web page as safetensors": (Form(text(PAGE, "a.safetensors")), "a web page, not a checkpoint"),
    "an answer of a store": (Form(text(b"<?xml version='1.0'?><Error/>")), "a web page, not a checkpoint"),
    "a pointer": (Form(text(POINTER)), "a pointer of Git LFS, not a checkpoint: fetch the file itself"),
    "an answer in JSON": (
        Form(text(b'{"error": "file not found"}\n')),
        'a text, not a checkpoint (it begins with \'{"error": "file not found"}\')',
    ),
    "cut safetensors": (
        Form(lambda folder: text(safetensors(bare(), "a")(folder).read_bytes()[:-9], "b")(folder)),
        "not a readable safetensors file",
    ),
    "RMSIN": (
        Form(file(rmsin())),
        "12 keys are not of LAVT, such as classifier.conv*_*.routing.norm (4), classifier.conv*_*.routing.fc_alpha (4",
    ),
    "RMSIN's name": (
        Form(file(rmsin())),
        "1 of LAVT's 286 keys is missing: classifier.conv*_* (1); looks like RMSIN",
    ),
    "Swin alone": (Form(file({"model": Alone(ONE).state_dict()})), "looks like a Swin Transformer alone"),
    "BERT alone": (Form(file(BERT)), "of LAVT's 421 keys are missing, such as backbone.layers.*.blocks.*.norm* (96)"),
    "BERT alone's name": (Form(file(published(BERT))), "looks like a BERT alone"),
    "no BERT": (Form(file(NO_BERT)), "key 'bert_model' is missing, and 'model' holds no text_encoder"),
    "no BERT, what to do": (Form(file(NO_BERT)), "give the BERT that was trained with it with --bert"),
    "two BERTs": (Form(file(apart()), options=bert_file(BERT)), "leave --bert out"),
    "two BERTs in a lavt_one": (Form(file(one()), options=bert_file(BERT)), "leave --bert out"),
    "no such BERT": (
        Form(file(NO_BERT), options=lambda folder: {"bert": folder / "none"}),
        "none: no such file; give a BERT's state dict, or a folder with model.safetensors or pytorch_model.bin",
    ),
    "a folder without BERT": (Form(file(NO_BERT), options=bert_folder({}, name="x")), "bert: no such file; give a"),
    "a BERT of other heads": (
        Form(file(NO_BERT), options=bert_folder(SIXTEEN)),
        "bert: config.json says num_attention_heads '16'; LAVT's BERT has 2",
    ),
    "another model's folder": (
        Form(file(NO_BERT), options=bert_folder({"model_type": "roberta"})),
        "config.json says model_type 'roberta'; LAVT's BERT has 'bert'",
    ),
    "a BERT of another width": (
        Form(file(NO_BERT), options=bert_file({**BERT, "embeddings.LayerNorm.bias": torch.zeros(25)})),
        "key 'bert_model: embeddings.LayerNorm.bias' has shape [25]; expected [24]",
    ),
    "a BERT with a layer more": (
        Form(file(NO_BERT), options=bert_file({**BERT, **{k.replace("r.0.", "r.1."): v for k, v in BERT.items()}})),
        "16 keys are not of LAVT, such as bert_model: encoder.layer.*",
    ),
    "a web page for BERT": (
        Form(file(NO_BERT), options=lambda folder: {"bert": text(PAGE, "bert.bin")(folder)}),
        "bert.bin: a web page, not a checkpoint",
    ),
    "no averages": (Form(file(one()), options=lambda _: {"ema": True}), "key 'model_ema' is missing"),
    "only averages": (Form(file(without(one(model_ema=bare()), "model"))), "which --ema takes"),
    "twice the same key": (
        Form(file(one(model={**bare(), **prefixed("module.", bare())}))),
        "twice, with and without a wrapper's prefix",
    ),
    "several shapes": (
        Form(file(one(model={key: value[None] if "norm1" in key else value for key, value in bare().items()}))),
        "(and 25 more keys do not fit LAVT demo)",
    ),
    "a size that is none": (Form(file(one(args={"mha": "", "img_size": "big"}))), "args.img_size is 'big'; say the"),
    "a size out of range": (Form(file(one(args={"mha": "", "img_size": 5}))), "args.img_size is '5'; say the size"),
    "heads of a dict that are none": (Form(file(one(args={"mha": "4-4"}))), "args.mha is '4-4'; expected four numbers"),
    "heads against an option": (
        Form(file(one(args={"mha": TWOS})), options=lambda _: {"fusion_heads": (1, 1, 1, 1)}),
        "trained with PWAM heads 1-2-4-2; leave the option out",
    ),
}
