"""Checkpoints: small real files with damage, and sound files of what is no LAVT."""

from __future__ import annotations

import argparse
import functools
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lavt_edge.errors import CheckpointError, LavtError
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig, checkpoint, load_checkpoint
from lavt_edge.reference.demo import demo_bytes, load_demo
from lavt_edge.tests.golden import golden_lavt, official_content
from lavt_edge.tests.stress.cases import Case, Kind, Rng, attempt, damaged

TEXT = TextConfig(vocab_size=60, hidden_size=24, num_layers=1, num_heads=2, intermediate_size=40, max_positions=20)
CONFIGS = tuple(LAVTConfig(swin="demo", window=7, variant=variant, text=TEXT) for variant in ("lavt", "lavt_one"))


@contextmanager
def _small_bert() -> Iterator[None]:
    """Checkpoints hold BERT base; here one of a few kilobytes."""
    logger = logging.getLogger("lavt_edge")
    original, level = checkpoint.LAVTConfig, logger.level
    logger.setLevel(logging.ERROR)  # it says of every file without arguments which heads it assumes
    checkpoint.LAVTConfig = functools.partial(LAVTConfig, text=TEXT)  # type: ignore[attr-defined, assignment, misc]
    try:
        yield
    finally:
        checkpoint.LAVTConfig = original  # type: ignore[attr-defined, misc]
        logger.setLevel(level)


def _check(answer: LAVT | LavtError) -> None:
    if not isinstance(answer, LavtError):
        assert not answer.training
        assert all(torch.isfinite(value).all() for value in answer.state_dict().values())


def _saved(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def files(folder: Path) -> Case:
    """Both kinds of LAVT in torch's zip form and its form of before 1.6, damaged in up to three places."""
    path = folder / "checkpoint.pth"
    contents = [official_content(golden_lavt(config), optimizer_bytes=8) for config in CONFIGS]
    whole = [_saved(content, _use_new_zipfile_serialization=new) for content in contents for new in (True, False)]

    def case(rng: Rng) -> None:
        data = whole[int(rng.integers(len(whole)))]
        start = data.find(b"data.pkl")
        for _ in range(int(rng.integers(1, 4))):
            if start > 0 and rng.random() < 0.4:  # the pickle within the archive, where all names and shapes are
                end = min(len(data), start + 60_000)
                data = data[:start] + damaged(data[start:end], rng) + data[end:]
            elif rng.random() < 0.3:  # the archive's directory
                data = data[:-20_000] + damaged(data[-20_000:], rng)
            else:
                data = damaged(data, rng, whole[int(rng.integers(len(whole)))])
        path.write_bytes(data)
        with _small_bert():
            _check(attempt(lambda: load_checkpoint(path), CheckpointError))

    return case


def contents(folder: Path) -> Case:
    """Sound files whose content has another form: keys, types, shapes and values that no LAVT has."""
    path = folder / "checkpoint.pth"
    originals = [official_content(golden_lavt(config), buffers=False, optimizer_bytes=8) for config in CONFIGS]
    odd: tuple[Any, ...] = (
        *(
            None,
            1,
            "x",
            [],
            {},
            (),
            torch.zeros(0),
            torch.zeros(()),
            torch.full((2, 2), float("nan")),
            torch.ones(1, 1),
        ),
        *(torch.zeros(3, dtype=torch.complex64), torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta")),
        *(torch.zeros((), dtype=torch.float16).expand(2**40), torch.zeros(4, dtype=torch.bool), 10**30, float("inf")),
        *(argparse.Namespace(mha="2-2-2-2"), argparse.Namespace(mha=None), {"x": torch.zeros(1)}, b"x", True),
        *(torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), torch.nn.Parameter(torch.zeros(3))),
    )

    def case(rng: Rng) -> None:
        content = dict(originals[int(rng.integers(len(originals)))])
        for _ in range(int(rng.integers(1, 4))):
            part = content
            name = list(content)[int(rng.integers(len(content)))] if content else "model"
            if rng.random() < 0.7 and isinstance(content.get(name), dict) and content[name]:
                part = content[name] = dict(content[name])
            keys = list(part) or ["model"]
            key = keys[int(rng.integers(len(keys)))]
            value = odd[int(rng.integers(len(odd)))]
            match int(rng.integers(5)):
                case 0:
                    part.pop(key, None)
                case 1:
                    part[f"{key}.x"] = part.pop(key, value)
                case 2 if isinstance(part.get(key), torch.Tensor) and part[key].ndim:
                    part[key] = part[key][..., :-1]
                case 3 if isinstance(part.get(key), torch.Tensor) and part[key].numel() < 10**7:
                    part[key] = part[key].to((torch.int8, torch.float64, torch.bfloat16)[int(rng.integers(3))])
                case _:
                    part[key] = value
        path.write_bytes(_saved(content))
        with _small_bert():
            _check(attempt(lambda: load_checkpoint(path), CheckpointError))

    return case


def demo_weights(folder: Path) -> Case:
    """The file of the demo model's weights, in which the configuration stands as JSON."""
    path = folder / "demo.safetensors"
    whole = demo_bytes(golden_lavt(CONFIGS[1]))
    header = 8 + int.from_bytes(whole[:8], "little")
    config = whole.index(b"__metadata__")

    def case(rng: Rng) -> None:
        data = whole
        place = rng.random()
        if place < 0.4:  # digits of the configuration, so that it stays readable and says something else
            content = bytearray(whole)
            digits = [i for i in range(config, config + 500) if content[i : i + 1].isdigit()]
            for i in rng.choice(digits, int(rng.integers(1, 4))):
                content[i] = int(rng.choice(list(b"0123456789-.e")))
            data = bytes(content)
        elif place < 0.7:
            data = damaged(whole[:header], rng) + whole[header:]
        else:
            data = damaged(whole, rng)
        path.write_bytes(data)
        attempt(lambda: load_demo(path), CheckpointError)

    return case


KINDS: dict[str, Kind] = {
    "checkpoint files": files,
    "checkpoint contents": contents,
    "demo weights": demo_weights,
}
