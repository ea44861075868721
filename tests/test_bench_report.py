"""The HTML report of `lavt-bench`: one file, everything in it, nothing from outside taken for markup."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lavt_edge.benchmarks.latency import PER_CALL
from lavt_edge.benchmarks.measure import Options, measure
from lavt_edge.benchmarks.measure_parts import add_estimate, add_layers, add_parts
from lavt_edge.benchmarks.report import page, write_report
from lavt_edge.benchmarks.report_charts import Axis, interval, place, spread, strip
from lavt_edge.benchmarks.report_format import bytes_text, finite, ms, rate, scaled, verdicts
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.tests.browser import Browser
from lavt_edge.tests.runtime_bundle import manifest_for, write_bundle
from onnx import numpy_helper
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
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
        "seconds": seconds,
        "summary": {**summary, "throughput": 1 / summary["median"]},
        "memory": {"peak_bytes": 1_234_000_000},
        "split": {
            "decode": 0.004,
            "preprocess": 0.003,
            "text_cold": 0.0217,
            "text_cached": 1e-4,
            "copies": 1e-4,
            "image": median,
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
                {"case": i, "sentence": text, "pixel_agreement": 1 - drop / 9, "image_png_base64": picture(60 * i + 20)}
                for i, text in enumerate(("the large red circle left of the small blue square", EVIL))
            ],
        }
        for name, drop in (("fp32", 0.0), ("fp16", 0.01), ("int8", 0.42))
    ]


def example() -> dict[str, Any]:
    """A full run, as benchmarks/measure.py gives it."""
    names = ["patch embedding", "text"]
    names += [f"stage{i} {what}" for i in range(1, 5) for what in ("attention", "MLP", "PWAM")]
    names += [f"decoder level {i}" for i in range(1, 4)]
    rng = np.random.default_rng(1)
    parts = [
        {"part": name, "seconds": float(s), "macs": int(m * 1e9), "bytes": int(b * 1e7)}
        for name, s, m, b in zip(names, rng.gamma(2, 0.03, 17), rng.gamma(2, 5, 17), rng.gamma(2, 4, 17), strict=True)
    ]
    other = [{**part, "seconds": part["seconds"] * 0.5} for part in parts]
    ceilings = {"macs_per_second": 2.1e11, "bytes_per_second": 1.6e10}
    roofs = []
    for part in parts:
        floor = max(part["macs"] / 2.1e11, part["bytes"] / 1.6e10)
        roofs.append({**part, "floor_seconds": floor, "seconds": 1.8 * floor, "efficiency": 1 / 1.8})
    return {
        "format": 1,
        "machine": {
            "cpu": {"model": "Example CPU @ 2.50GHz", "flags": ["avx2", "fma", "avx512f", "avx512_vnni"], "cores": 2},
            "memory_bytes": 25_000_000_000,
            "gpu": None,
            "versions": {"onnxruntime": "1.24.4", "torch": "2.15.0"},
        },
        "options": {"rounds": 20, "warmup": 3, "against": ["onnx-plain", "torch"]},
        "sides": [
            make_side("bundle/segmenter.onnx", 0.921, "fp32", "bundle", 0),
            make_side("bundle/segmenter.int8.onnx", 0.412, "int8", "bundle", 1),
            make_side("onnx-plain", 1.18, "fp32", "onnx-plain", 2),
            make_side(EVIL, 1.61, "fp32", "torch", 3),
        ],
        "ratios": [
            {"name": "bundle/segmenter.onnx", "against": "onnx-plain", "ratio": 0.78, "low": 0.771, "high": 0.792},
            {"name": "bundle/segmenter.onnx", "against": EVIL, "ratio": 1.1, "low": 1.05, "high": 1.2},
            {"name": "bundle/segmenter.int8.onnx", "against": "onnx-plain", "ratio": 1.0, "low": 0.98, "high": 1.02},
        ],
        "warnings": ["a virtual machine: its host's other guests share cores and caches", EVIL],
        "parts": [
            {"side": "bundle/segmenter.onnx", "parts": parts},
            {"side": "bundle/segmenter.int8.onnx", "parts": other},
        ],
        "roofline": {"ceilings": ceilings, "parts": roofs},
        "fidelity": fidelity_rows(),
        "text": {"seconds": 0.0207, "macs": 1_770_000_000, "bytes": 350_000_000, "weight_bytes": 340_000_000},
        "estimate": {
            "name": "Jetson Example",
            "source": "https://example.com/device",
            "note": "dense as published",
            "precision": "fp32",
            "label": "floor from published peak rates, not a promise: no device reaches it",
            "parts": [{"part": name, "floor_seconds": 0.01, "bound": "memory"} for name in names],
            "floor_seconds": 0.17,
            "needed_bytes": 900_000_000,
            "memory_bytes": 8_000_000_000,
            "fits": True,
        },
        "layers": [
            {
                "tensor": f"tensor{i}",
                "node": f"node{i}",
                "relative_error": None if i == 0 else 0.5 / i,
                "first": i == 30,
            }
            for i in range(40)
        ],
        "sweeps": [
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
        ],
    }


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


@pytest.fixture(scope="module")
def html() -> str:
    return page(example())


class TestPage:
    def test_tags_balance_and_nothing_is_a_script(self, html: str) -> None:
        reader = Reader(html)
        assert reader.open == []
        assert "script" not in reader.tags
        assert not [name for _, name, _ in reader.attributes if name.startswith("on")]

    def test_nothing_is_loaded_from_outside(self, html: str) -> None:
        """A link to where a device's figures were published loads nothing until it is followed."""
        loads = ("src", "href", "srcset", "data", "action")
        loaded = [value for tag, name, value in Reader(html).attributes if name in loads and tag != "a"]
        assert loaded
        assert all(value.startswith("data:") for value in loaded)
        rest = re.sub(r'base64,[A-Za-z0-9+/=]+|<a href="https://[^"]*"', "", html)
        assert not re.search(r"@import|url\(|https?:|//[a-z]", rest)

    def test_a_source_that_is_no_address_of_the_web_is_no_link(self) -> None:
        result = example()
        result["estimate"]["source"] = "javascript:alert(1)"
        assert "javascript" not in page(result)
        assert "a" not in Reader(page(result)).tags

    def test_every_side_part_and_precision_is_named(self, html: str) -> None:
        text, result = Reader(html).text, example()
        names = [side["name"] for side in result["sides"]] + [row["name"] for row in result["fidelity"]]
        names += [part["part"] for one in result["parts"] for part in one["parts"]]
        names += [one["against"] for one in result["ratios"]] + result["warnings"]
        assert [name for name in names if name not in text] == []

    def test_a_script_in_a_sentence_stays_text(self, html: str) -> None:
        assert "<script" not in html
        assert f"“{EVIL}”" in Reader(html).text

    def test_figures_and_environment_are_written_out(self, html: str) -> None:
        text = Reader(html).text
        for shown in ("0.780 (0.771–0.792)", "Example CPU @ 2.50GHz", "avx512_vnni", "onnxruntime", "1.24.4", "25 GB"):
            assert shown in text
        assert text.count("1.23 GB") == 5  # a tile, and each side's line

    def test_a_sweep_shows_each_side_and_what_was_left_out(self, html: str) -> None:
        text = Reader(html).text
        assert "onnx-plain with batch 2: batch of 1 <only>" in text
        assert re.search(r"bundle/segmenter.onnx\s+–\s+2\s+500.0 ms\s+600.0 ms\s+4.00", text)

    def test_a_call_is_the_steps_that_it_has(self, html: str) -> None:
        """Bars are as long as their steps, on the scale of the longest call; decoding and text are in no bar."""
        widths = [float(one) for one in re.findall(r'width="([\d.]+)%"', section_of(html, "What a call consists of"))]
        sides = example()["sides"]
        assert len(widths) == 5 * len(sides)  # a track and four steps
        most = max(side["call"] for side in sides)
        for i, side in enumerate(sides):
            steps = [side["split"][step] for step in ("preprocess", "copies", "image", "postprocess")]
            assert widths[5 * i + 1 : 5 * i + 5] == pytest.approx([100 * step / most for step in steps], abs=0.006)

    def test_the_text_encoder_is_beside_the_parts(self, html: str) -> None:
        shown = text_of(section_of(html, "Where the time goes"))
        assert "text encoder, once a sentence: 20.7 ms, 1.77 GMACs, 340 MB of weights" in shown
        unknown = example()
        unknown["text"]["seconds"] = None
        assert "text encoder, once a sentence: 1.77 GMACs" in Reader(page(unknown)).text
        del unknown["text"]
        assert "text encoder" not in text_of(section_of(page(unknown), "Where the time goes"))

    def test_the_worst_layers_are_ranked_and_the_first_is_among_them(self, html: str) -> None:
        shown = text_of(section_of(html, "Layers against FP32"))
        assert "part company at node30 (tensor tensor30, relative error 1.7e-02)" in shown
        assert [int(one) for one in re.findall(r"node(\d+) tensor", shown)] == [*range(20), 30]
        assert "not finite" in shown
        sound = example()
        sound["layers"] = [{**row, "first": False} for row in sound["layers"]]
        assert "No tensor parts company" in Reader(page(sound)).text

    def test_a_part_above_the_ceiling_is_told(self) -> None:
        result = example()
        assert "Faster than the measured ceiling" not in page(result)
        result["roofline"]["parts"][3]["efficiency"] = 1.12
        result["roofline"]["parts"][4]["efficiency"] = 1.04
        said = re.findall(r"Faster than the measured ceiling allows: ([^.]*)\.", Reader(page(result)).text)
        assert said == [f"{result['roofline']['parts'][3]['part']} (112 %)"]

    def test_fidelity_says_what_it_is_compared_with(self, html: str) -> None:
        assert "What each precision keeps of PyTorch over 200 sentences" in Reader(html).text
        older = example()
        for row in older["fidelity"]:
            del row["against"]
            row["iou_with_fp32"] = row.pop("iou_with_reference")
        text = text_of(section_of(page(older), "Precision and accuracy"))
        assert "keeps of the FP32 graph" in text
        assert "99.58" in text

    def test_each_picture_of_each_precision_is_in_it(self, html: str) -> None:
        sources = [value for tag, name, value in Reader(html).attributes if (tag, name) == ("img", "src")]
        assert len(sources) == 6
        for source in sources:
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))).verify()

    def test_a_picture_that_is_not_base64_is_left_out(self) -> None:
        result = example()
        result["fidelity"][0]["overlays"][0]["image_png_base64"] = '"><b>'
        assert len([tag for tag in Reader(page(result)).tags if tag == "img"]) == 5

    @pytest.mark.parametrize(
        "missing",
        ["split", "parts", "roofline", "estimate", "fidelity", "layers", "sweeps", "warnings", "ratios"],
    )
    def test_a_section_that_was_not_measured_is_left_out(self, missing: str) -> None:
        result = example()
        if missing == "split":
            for side in result["sides"]:
                side["split"] = None
        else:
            result[missing] = [] if missing in ("sweeps", "warnings", "ratios") else None
        text = page(result)
        assert Reader(text).open == []
        assert text.count("<section") == page(example()).count("<section") - 1

    def test_an_empty_run_is_still_a_page(self) -> None:
        reader = Reader(page({"format": 1}))
        assert reader.open == []
        assert "nothing was measured" in reader.text

    def test_numbers_that_are_none_do_not_break_it(self) -> None:
        result = json.loads(json.dumps(example()), parse_float=lambda text: None)
        assert Reader(page(result)).open == []
        broken = copy.deepcopy(example())
        broken["ratios"][0]["ratio"] = float("nan")
        broken["sides"][0]["seconds"] = [float("inf")]
        assert "nan" not in Reader(page(broken)).text.split()

    def test_it_is_written_as_one_file(self, tmp_path: Path) -> None:
        write_report(example(), tmp_path / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(example())


DAMAGED = "stage0.block0.mlp.fc1/MatMul"


def add_damaged_graph(bundle: Path) -> None:
    """Names the image graph's nodes after parts of the model, and adds it as FP16 with one constant damaged.

    Costs are counted from shapes, which exported graphs hold.
    """
    names = {"pixels": "patch_embed.proj/Div", "colour": DAMAGED, "score": "classifier/MatMul"}
    text = bundle / "text_encoder.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(text)), text)
    files = {text.name: file_entry(text, "text_encoder", "fp32")}
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle / "segmenter.onnx"))
    for node in model.graph.node:
        node.name = names.get(node.output[0], f"decoder.level0/{node.output[0]}")
    for name, precision, factor in (("segmenter.onnx", "fp32", 1.0), ("segmenter.fp16.onnx", "fp16", 1.5)):
        constant = next(one for one in model.graph.initializer if one.name == "projection")
        constant.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(constant), "projection"))
        onnx.save(model, bundle / name)
        files[name] = file_entry(bundle / name, "segmenter", precision)
    manifest = open_bundle(bundle).manifest
    (bundle / "lavt.json").write_text(manifest_for({**manifest.files, **files}, batch=None).to_json())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small bundle's damaged graph, beside one for batches of 1, as `lavt-bench` measures and writes it."""
    folder = tmp_path_factory.mktemp("reported")
    bundle, fixed = write_bundle(folder / "small", batch=None), write_bundle(folder / "fixed", batch=1)
    add_damaged_graph(bundle)
    options = Options(
        bundle / "segmenter.fp16.onnx",
        (str(fixed),),
        rounds=3,
        warmup=0,
        threads=1,
        device="cpu",
        sweep_threads=(1, 2),
        sweep_batch=(2,),
        sweep_rounds=2,
    )
    result = measure(options)
    add_parts(result, options, lambda step: None)
    add_estimate(result, options, "jetson-orin-nano", lambda step: None)
    add_layers(result, options, lambda step: None)
    return dict(json.loads(json.dumps(result)))


@pytest.fixture(scope="module")
def shown(result: dict[str, Any]) -> str:
    return page(result)


class TestARealRun:
    """The page of what the command measures, so that no form that is invented here hides what is left out."""

    def test_sweeps(self, result: dict[str, Any], shown: str) -> None:
        html = section_of(shown, "Sweeps")
        text, entries = text_of(html), result["sweeps"]
        assert [(one["sweep"], one["name"] == "fixed", "skipped" in one) for one in entries] == [
            *(("threads", False, False), ("threads", True, False)) * 2,
            *(("batch", False, False), ("batch", True, True)),
        ]
        for one in entries:
            if "skipped" in one:
                assert f"{one['name']} with batch 2: {one['skipped']}" in text
                continue
            summary, threads = one["summary"], one["threads"]
            times = f"{ms(summary['median'])} {ms(summary['p90'])} {rate(summary['throughput'])}"
            assert f"{one['name']} {threads} {one['batch']} {times}" in text
            assert f"{one[one['sweep']]}: {rate(summary['throughput'])} images a second" in text  # a dot of the chart
            if "ratio" in one:
                assert f"{one['ratio']:.3f} ({one['low']:.3f}–{one['high']:.3f})" in text
        assert html.count("<circle") == len(entries) - 1

    def test_parts_and_the_text_encoder(self, result: dict[str, Any], shown: str) -> None:
        text = text_of(section_of(shown, "Where the time goes"))
        (side,) = result["parts"]
        assert side["parts"]
        for part in side["parts"]:
            assert part["part"] in text
            assert f"{ms(part['seconds'])}, " in text
        total = sum(part["seconds"] for part in side["parts"])
        assert f"{side['side']}, all parts: {ms(total)}" in text
        assert f"text encoder, once a sentence: {ms(result['text']['seconds'])}" in text

    def test_roofline(self, result: dict[str, Any], shown: str) -> None:
        text, data = text_of(section_of(shown, "Roofline")), result["roofline"]
        assert scaled(data["ceilings"]["macs_per_second"], "MACs/s") in text
        for part in data["parts"]:
            assert f"{100 * part['efficiency']:.0f} % of {ms(part['seconds'])}" in text
            assert f"floor {ms(part['floor_seconds'])}" in text

    def test_the_devices_floor(self, result: dict[str, Any], shown: str) -> None:
        html, found = section_of(shown, "Floor on"), result["estimate"]
        text = text_of(html)
        for name in ("name", "label", "note"):
            assert found[name] in text
        assert f'href="{found["source"]}"' in html
        for part in found["parts"]:
            assert f"{part['part']} {ms(part['floor_seconds'])}, {part['bound']}" in text
        assert f"in all: {ms(found['floor_seconds'])}" in text
        assert f"{bytes_text(found['needed_bytes'])} of {bytes_text(found['memory_bytes'])}: it fits" in text

    def test_layers(self, result: dict[str, Any], shown: str) -> None:
        text, rows = text_of(section_of(shown, "Layers against FP32")), result["layers"]
        assert f"part company at {DAMAGED} (tensor colour, " in text
        for row in rows[:20]:
            assert f"{row['node']} {row['tensor']} {row['relative_error']:.1e}" in text

    def test_a_call(self, result: dict[str, Any], shown: str) -> None:
        text = text_of(section_of(shown, "What a call consists of"))
        for side in result["sides"]:
            assert set(side["split"]) == {*PER_CALL, "decode", "text_cold", "text_cached"}
            for seconds in (*side["split"].values(), side["call"], side["overhead"]["seconds"]):
                assert ms(seconds) in text
            whole = sum(side["split"][step] for step in PER_CALL)
            assert f"{side['name']} steps add up to {ms(whole)} {ms(side['call'])}" in text
            for step in PER_CALL:
                assert f"{ms(side['split'][step])}, {100 * side['split'][step] / whole:.1f} %" in text


class TestWords:
    def test_the_verdict_follows_the_interval_and_not_the_ratio(self) -> None:
        said = [(tone, word) for tone, word, _ in verdicts(example())]
        assert said[:3] == [("good", "Faster:"), ("bad", "Slower:"), ("soft", "No difference shown:")]
        assert ("good", "Accuracy:") in said
        assert ("bad", "2 warnings:") in said

    def test_the_heaviest_part_is_named_first(self) -> None:
        result = example()
        (text,) = [rest for _, word, rest in verdicts(result) if word.startswith("Where")]
        parts = result["parts"][0]["parts"]
        assert text.startswith(max(parts, key=lambda part: part["seconds"])["part"])

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.00123, "1.23 ms"), (0.0456, "45.6 ms"), (1.2345, "1234 ms"), (None, "–")]
    )
    def test_times(self, seconds: float | None, text: str) -> None:
        assert ms(seconds) == text

    def test_counts(self) -> None:
        assert scaled(154.7e9, "MACs") == "155 GMACs"
        assert finite(True) is None


class TestCharts:
    def test_a_strip_puts_the_median_and_every_round_at_its_place(self) -> None:
        marks = strip([1.0, 2.0, 4.0], (0.0, 4.0), "red")
        assert [float(x) for x in re.findall(r'<line x1="([\d.]+)%"', marks)] == [25.0, 50.0, 100.0, 50.0]

    def test_an_interval_spans_its_ends(self) -> None:
        marks = interval(0.8, 0.7, 0.9, (0.5, 1.5), "red")
        assert 'x1="20.00%" x2="40.00%"' in marks
        assert 'cx="30.00%"' in marks
        assert 'x1="50.00%"' in marks  # the line at 1

    def test_a_logarithmic_axis_places_decades_evenly(self) -> None:
        axis = Axis("", 1.0, 1000.0, log=True)
        assert [round(axis.place(value), 3) for value in (1, 10, 100, 1000)] == [0, 0.333, 0.667, 1]
        assert axis.ticks() == [1, 10, 100, 1000]

    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (88.3, 91.2), (0.0, 1234.0), (-0.003, 0.002)])
    def test_a_linear_axis_has_few_ticks_and_all_on_it(self, low: float, high: float) -> None:
        ticks = Axis("", low, high).ticks()
        assert 3 <= len(ticks) <= 11
        assert low - 1e-9 <= min(ticks) < max(ticks) <= high + 1e-9

    def test_the_origin_is_down_left(self) -> None:
        x, y = Axis("", 0, 1), Axis("", 0, 1)
        assert place(x, y, 0, 0)[0] < place(x, y, 1, 1)[0]
        assert place(x, y, 0, 0)[1] > place(x, y, 1, 1)[1]

    def test_a_range_is_never_empty(self) -> None:
        assert all(low < high for low, high in (spread([1.0]), spread([0.0]), spread([2.0, 2.0]), spread([1.0, 3.0])))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Browser(executable, Path(profile))
        yield opened
        opened.close()


class TestInABrowser:
    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_it_renders_without_an_error_and_without_scrolling_sideways(
        self, browser: Browser, tmp_path: Path, width: int, dark: bool
    ) -> None:
        path = tmp_path / "report.html"
        write_report(example(), path)
        browser.show(path.as_uri(), width, dark)
        assert browser.problems() == []
        assert browser.value("innerWidth") == width
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelectorAll('section').length") == 13
        assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)") is True
        # What is drawn has a size, in the colours of its side.
        assert browser.value("[...document.querySelectorAll('.row svg')].every(one => one.clientWidth > 100)") is True
        wide = "document.querySelector('.plot.wide svg').clientWidth"
        assert browser.value(wide) > (900 if width == 1280 else 250)
        assert browser.value("getComputedStyle(document.querySelector('.row svg circle')).fill") not in ("", "none")
        assert len(browser.screenshot()) > 10_000

    def test_a_page_that_is_broken_is_noticed(self, browser: Browser, tmp_path: Path) -> None:
        path = tmp_path / "broken.html"
        path.write_text(
            "<img src='http://127.0.0.1:9/none.png'><div style='width:2000px'>x</div><script>undefined.x</script>"
        )
        browser.show(path.as_uri(), 390)
        assert len(browser.problems()) >= 2
        assert browser.value("document.documentElement.scrollWidth") > 390
