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
import pytest
from lavt_edge.benchmarks.report import page, write_report
from lavt_edge.benchmarks.report_charts import Axis, interval, place, spread, strip
from lavt_edge.benchmarks.report_format import finite, ms, scaled, verdicts
from lavt_edge.tests.browser import Browser
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
        "split": {"decode": 0.004, "preprocess": 0.003, "text": 0.02, "image": median, "postprocess": 0.006},
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
            "iou_with_fp32": 100 - drop,
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
        "sweeps": [
            {
                "threads": 1,
                "batch": 2,
                "sides": [
                    {"name": "bundle", "summary": {"median": 0.5, "p90": 0.6, "throughput": 4.0}, "memory": None}
                ],
                "ratios": [],
                "skipped": [{"name": "onnx-plain", "reason": "batch of 1 <only>"}],
            }
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
        loaded = [
            value for _, name, value in Reader(html).attributes if name in ("src", "href", "srcset", "data", "action")
        ]
        assert loaded
        assert all(value.startswith("data:") for value in loaded)
        assert not re.search(r"@import|url\(|https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))

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
        assert re.search(r"bundle\s+1\s+2\s+500.0 ms\s+600.0 ms\s+4.00", text)

    def test_each_picture_of_each_precision_is_in_it(self, html: str) -> None:
        sources = [value for tag, name, value in Reader(html).attributes if (tag, name) == ("img", "src")]
        assert len(sources) == 6
        for source in sources:
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))).verify()

    def test_a_picture_that_is_not_base64_is_left_out(self) -> None:
        result = example()
        result["fidelity"][0]["overlays"][0]["image_png_base64"] = '"><b>'
        assert len([tag for tag in Reader(page(result)).tags if tag == "img"]) == 5

    @pytest.mark.parametrize("missing", ["split", "parts", "roofline", "fidelity", "sweeps", "warnings", "ratios"])
    def test_a_section_that_was_not_measured_is_left_out(self, missing: str) -> None:
        result = example()
        if missing == "split":
            for side in result["sides"]:
                side["split"] = None
        else:
            result[missing] = None if missing in ("parts", "roofline", "fidelity") else []
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
        assert browser.value("document.querySelectorAll('section').length") == 11
        assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)") is True
        # What is drawn has a size, in the colours of its side.
        assert browser.value("[...document.querySelectorAll('.row svg')].every(one => one.clientWidth > 100)") is True
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
