"""An invented run that has everything, and what reads the page that `lavt-bench --report` makes of a run."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
from lavt_edge._base.records import from_plain
from lavt_edge.benchmarks.timing.result import Result
from PIL import Image

EVIL = "<script>throw new Error('ran')</script> & \"the man\" in 'red' </style>"
VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "line", "circle", "path"}


def picture(shade: int) -> str:
    content = io.BytesIO()
    Image.new("RGB", (320, 280), (shade, 90, 140)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def make_side(name: str, median: float, precision: str | None, kind: str, seed: int) -> dict[str, Any]:
    seconds = (median * np.random.default_rng(seed).lognormal(0, 0.03, 20)).tolist()
    summary = dict(zip(("median", "p90", "p99"), np.percentile(seconds, (50, 90, 99)).tolist(), strict=True))
    return {
        "name": name,
        "kind": kind,
        "precision": precision,
        "size": [480, 480],
        "batch": 1,
        "device": "cpu",
        "runtime": "ONNX Runtime 1.24.4",
        "file": None,
        "seconds": seconds,
        "summary": {**summary, "throughput": 1 / summary["median"]},
        "memory": {"peak_bytes": 1_234_000_000, "before_bytes": 100_000_000, "device_bytes": None},
        "split": {
            "decode": 0.004,
            "preprocess": 0.003,
            "text_cold": 0.0217,
            "text_cached": 1e-4,
            "copy_in": 1e-4,
            "image": median,
            "copy_out": 2e-4,
            "postprocess": 0.006,
        },
        "call": 1.01 * median,
        "overhead": {"seconds": 0.0091, "share": 0.0098},
    }


def fidelity_rows() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "sentences": 200,
            "mean_iou": 91.2 - drop,
            "drop": drop,
            "relative_error": drop / 50,
            "pixel_agreement": 1 - drop / 100,
            "iou_with_reference": 100 - drop,
            "against": "PyTorch",
            "overlays": [
                {
                    "case": i,
                    "sentence": text,
                    "pixel_agreement": 1 - drop / 9,
                    "iou_with_reference": 100 - drop,
                    "image_png_base64": picture(60 * i + 20),
                }
                for i, text in enumerate(("the large red circle left of the small blue square", EVIL))
            ],
        }
        for name, drop in (("fp32", 0.0), ("fp16", 0.01), ("int8", 0.42))
    ]


def layer_rows() -> list[dict[str, Any]]:
    errors = [None, *(0.5 / i for i in range(1, 40))]
    return [
        {"tensor": f"tensor{i}", "node": f"node{i}", "relative_error": error, "first": i == 30}
        for i, error in enumerate(errors)
    ]


def sweep_rows() -> list[dict[str, Any]]:
    return [
        *(
            {
                "sweep": kind,
                "threads": threads,
                "batch": batch,
                "name": "bundle/segmenter.onnx",
                "seconds": [0.5],
                "summary": {"median": 0.5, "p90": 0.6, "p99": 0.7, "throughput": 4.0},
            }
            for kind, threads, batch in (("threads", 1, 1), ("threads", 2, 1), ("batch", None, 2))
        ),
        {"sweep": "batch", "threads": None, "batch": 2, "name": "onnx-plain", "skipped": "batch of 1 <only>"},
    ]


def example() -> dict[str, Any]:
    """A full run, as `lavt-bench --json` writes it."""
    names = ["patch embedding", "text"]
    names += [f"stage{i} {what}" for i in range(1, 5) for what in ("attention", "MLP", "PWAM")]
    names += [f"decoder level {i}" for i in range(1, 4)]
    rng = np.random.default_rng(1)
    parts = [
        {
            "part": name,
            "seconds": float(s),
            "macs": int(m * 1e9),
            "macs_by_precision": {"fp32": int(m * 1e9)},
            "bytes": int(b * 1e7),
            "weight_bytes": int(b * 1e6),
            "peak_activation_bytes": int(b * 1e6),
        }
        for name, s, m, b in zip(names, rng.gamma(2, 0.03, 17), rng.gamma(2, 5, 17), rng.gamma(2, 4, 17), strict=True)
    ]
    other = [{**part, "seconds": part["seconds"] * 0.5} for part in parts]
    ceilings = {"macs_per_second": 2.1e11, "bytes_per_second": 1.6e10, "precision": "fp32", "threads": 2}
    ceilings |= {"by_precision": {"fp32": 2.1e11}, "backend": "onnxruntime 1.24.4, CPU"}
    roofs = []
    for part in parts:
        floor = max(part["macs"] / 2.1e11, part["bytes"] / 1.6e10)
        timed = {**part, "floor_seconds": floor, "seconds": 1.8 * floor, "efficiency": 1 / 1.8}
        roofs.append({**timed, "bound": "compute", "macs_per_byte": part["macs"] / part["bytes"]})
    return {
        "format": 1,
        "machine": {
            "cpu": {
                "model": "Example CPU @ 2.50GHz",
                "flags": ["avx2", "fma", "avx512f", "avx512_vnni"],
                "cores": 2,
                "allowed": 2,
                "quota": None,
                "virtual": True,
                "mhz": 2500.0,
                "max_mhz": None,
                "governor": None,
            },
            "threads": 2,
            "memory_bytes": 25_000_000_000,
            "gpu": None,
            "jetson": None,
            "system": "Linux 6.1 x86_64",
            "python": "3.11.7",
            "load": 0.1,
            "versions": {"onnxruntime": "1.24.4", "torch": "2.15.0"},
        },
        "options": {"engine": "bundle/segmenter.onnx", "rounds": 20, "warmup": 3, "against": ["onnx-plain", "torch"]},
        "sides": [
            make_side("bundle/segmenter.onnx", 0.921, "fp32", "bundle", 0),
            make_side("bundle/segmenter.int8.onnx", 0.412, "int8", "bundle", 1),
            make_side("onnx-plain", 1.18, "fp32", "onnx", 2),
            make_side(EVIL, 1.61, "fp32", "torch", 3),
        ],
        "ratios": [
            {"name": "bundle/segmenter.onnx", "against": "onnx-plain", "ratio": 0.78, "low": 0.771, "high": 0.792},
            {"name": "bundle/segmenter.onnx", "against": EVIL, "ratio": 1.1, "low": 1.05, "high": 1.2},
            {"name": "bundle/segmenter.int8.onnx", "against": "onnx-plain", "ratio": 1.0, "low": 0.98, "high": 1.02},
        ],
        "warnings": ["a virtual machine: its host's other guests share cores and caches", EVIL],
        "parts": [
            {"side": "bundle/segmenter.onnx", "precision": "fp32", "parts": parts},
            {"side": "bundle/segmenter.int8.onnx", "precision": "int8", "parts": other},
        ],
        "roofline": {"ceilings": ceilings, "parts": roofs},
        "fidelity": fidelity_rows(),
        "text": {"seconds": 0.0207, "macs": 1_770_000_000, "bytes": 350_000_000, "weight_bytes": 340_000_000},
        "estimate": {
            "device": "jetson-example",
            "name": "Jetson Example",
            "source": "https://example.com/device",
            "note": "dense as published",
            "precision": "fp32",
            "label": "lower bound from published peak rates, not a promise: no device reaches it",
            "parts": [{"part": name, "floor_seconds": 0.01, "bound": "memory"} for name in names],
            "floor_seconds": 0.17,
            "needed_bytes": 900_000_000,
            "memory_bytes": 8_000_000_000,
            "fits": True,
        },
        "layers": layer_rows(),
        "sweeps": sweep_rows(),
    }


def read(plain: dict[str, Any]) -> Result:
    """A run as `--json` writes it, as the renderers take it."""
    return from_plain(Result, json.loads(json.dumps(plain)))


class Reader(HTMLParser):
    """Checks that tags balance, and gathers text, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert tag in VOID, f"<{tag}/> is not an empty element"

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def section_of(html: str, title: str) -> str:
    """The HTML of a section by its title."""
    return next(one for one in re.findall(r"<section.*?</section>", html, re.DOTALL) if f"<h2>{title}" in one)


def text_of(html: str) -> str:
    """Its text, every run of blanks as one."""
    return " ".join(Reader(html).text.split())
