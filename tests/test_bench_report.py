"""The HTML report of `lavt-bench`: one file, everything in it, nothing from outside taken for markup."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lavt_edge.benchmarks.report.charts import Axis, interval, place, spread, strip
from lavt_edge.benchmarks.report.format import ms, scaled, verdicts
from lavt_edge.benchmarks.report.page import page, write_report
from lavt_edge.tests.browser import Browser
from lavt_edge.tests.browser import browser as browser  # a fixture
from lavt_edge.tests.report_pages import EVIL, Reader, example, read, section_of, text_of
from PIL import Image


@pytest.fixture(scope="module")
def html() -> str:
    return page(read(example()))


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
        assert "javascript" not in page(read(result))
        assert "a" not in Reader(page(read(result))).tags

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
        assert len(widths) == 6 * len(sides)  # a track and five steps
        most = max(side["call"] for side in sides)
        for i, side in enumerate(sides):
            steps = [side["split"][step] for step in ("preprocess", "copy_in", "image", "copy_out", "postprocess")]
            assert widths[6 * i + 1 : 6 * i + 6] == pytest.approx([100 * step / most for step in steps], abs=0.006)

    def test_the_text_encoder_is_beside_the_parts(self, html: str) -> None:
        shown = text_of(section_of(html, "Where the time goes"))
        assert "text encoder, once a sentence: 20.7 ms, 1.77 GMACs, 340 MB of weights" in shown
        unknown = example()
        del unknown["text"]
        assert "text encoder" not in text_of(section_of(page(read(unknown)), "Where the time goes"))

    def test_the_worst_layers_are_ranked_and_the_first_is_among_them(self, html: str) -> None:
        shown = text_of(section_of(html, "Layers against FP32"))
        assert "output diverges from FP32 is node30 (tensor tensor30, relative error 1.7e-02)" in shown
        assert [int(one) for one in re.findall(r"node(\d+) tensor", shown)] == [*range(20), 30]
        assert "not finite" in shown
        sound = example()
        sound["layers"] = [{**row, "first": False} for row in sound["layers"]]
        assert "No layer's output diverges" in Reader(page(read(sound))).text

    def test_a_part_above_the_ceiling_is_told(self) -> None:
        result = example()
        assert "Faster than the measured ceiling" not in page(read(result))
        result["roofline"]["parts"][3]["efficiency"] = 1.12
        result["roofline"]["parts"][4]["efficiency"] = 1.04
        said = re.findall(r"Faster than the measured ceiling allows: ([^.]*)\.", Reader(page(read(result))).text)
        assert said == [f"{result['roofline']['parts'][3]['part']} (112 %)"]

    def test_fidelity_says_what_it_is_compared_with(self, html: str) -> None:
        assert "What each precision keeps of PyTorch over 200 sentences" in Reader(html).text
        older = example()
        for row in older["fidelity"]:
            row["against"] = "the FP32 graph"
        text = text_of(section_of(page(read(older)), "Precision and accuracy"))
        assert "keeps of the FP32 graph" in text
        assert "IoU with the FP32 graph" in text
        assert "99.58" in text

    def test_each_picture_of_each_precision_is_in_it(self, html: str) -> None:
        sources = [value for tag, name, value in Reader(html).attributes if (tag, name) == ("img", "src")]
        assert len(sources) == 6
        for source in sources:
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))).verify()

    def test_a_picture_that_is_not_base64_is_left_out(self) -> None:
        result = example()
        result["fidelity"][0]["overlays"][0]["image_png_base64"] = '"><b>'
        assert len([tag for tag in Reader(page(read(result))).tags if tag == "img"]) == 5

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
        text = page(read(result))
        assert Reader(text).open == []
        assert text.count("<section") == page(read(example())).count("<section") - 1

    def test_the_engine_alone_is_still_a_page(self) -> None:
        alone = example()
        alone["sides"], alone["ratios"], alone["sweeps"], alone["warnings"] = alone["sides"][:1], [], [], []
        for key in ("parts", "roofline", "fidelity", "text", "estimate", "layers"):
            del alone[key]
        alone["sides"][0] |= {"split": None, "memory": dict.fromkeys(alone["sides"][0]["memory"])}
        reader = Reader(page(read(alone)))
        assert reader.open == []
        assert alone["sides"][0]["name"] in reader.text
        assert "peak memory" not in reader.text.split("All figures")[0]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda run: run["ratios"][0].update(ratio="0.78"),
                r"Result\.ratios\[0\]\.ratio: expected a number, found '0\.78'",
            ),
            (
                lambda run: run["sides"][0].update(seconds=[0.5, None]),
                r"seconds\[1\]: expected a number, found nothing",
            ),
            (lambda run: run["sides"][1].update(size=[480]), "size has 1 values, not 2"),
            (
                lambda run: run["machine"]["cpu"].update(virtual=1),
                r"machine\.cpu\.virtual: expected true or false, found 1",
            ),
            (lambda run: run["roofline"].pop("ceilings"), r"roofline\.ceilings is missing"),
            (lambda run: run.update(machine=None), r"Result\.machine: expected an object, found nothing"),
        ],
    )
    def test_a_value_of_another_type_never_reaches_it(self, change: Callable[[Any], object], said: str) -> None:
        broken = example()
        change(broken)
        with pytest.raises(ValueError, match=said):
            read(broken)

    def test_an_error_that_is_not_finite_is_null_in_json(self) -> None:
        result = read(example())
        overflow = replace((result.fidelity or ())[1], relative_error=math.inf)
        plain = replace(result, fidelity=(overflow,)).to_dict()
        assert plain["fidelity"][0]["relative_error"] is None
        assert read(plain).fidelity == (replace(overflow, relative_error=None),)

    def test_what_is_read_is_what_was_written(self) -> None:
        result = read(example())
        assert read(result.to_dict()) == result
        assert result.to_dict()["sides"] == example()["sides"]
        without = {**example(), "later": 1}
        del without["estimate"]
        assert "estimate" not in read(without).to_dict()

    def test_it_is_written_as_one_file(self, tmp_path: Path) -> None:
        write_report(read(example()), tmp_path / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(read(example()))


class TestWords:
    def test_the_verdict_follows_the_interval_and_not_the_ratio(self) -> None:
        said = [(tone, word) for tone, word, _ in verdicts(read(example()))]
        assert said[:3] == [("good", "Faster:"), ("bad", "Slower:"), ("soft", "No difference shown:")]
        assert ("good", "Accuracy:") in said
        assert ("bad", "2 warnings:") in said

    def test_the_heaviest_part_is_named_first(self) -> None:
        result = example()
        (text,) = [rest for _, word, rest in verdicts(read(result)) if word.startswith("Where")]
        parts = result["parts"][0]["parts"]
        assert text.startswith(max(parts, key=lambda part: part["seconds"])["part"])

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.00123, "1.23 ms"), (0.0456, "45.6 ms"), (1.2345, "1234 ms"), (None, "–")]
    )
    def test_times(self, seconds: float | None, text: str) -> None:
        assert ms(seconds) == text

    def test_counts(self) -> None:
        assert scaled(154.7e9, "MACs") == "155 GMACs"


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


class TestInABrowser:
    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_it_renders_without_an_error_and_without_scrolling_sideways(
        self, browser: Browser, tmp_path: Path, width: int, dark: bool
    ) -> None:
        path = tmp_path / "report.html"
        write_report(read(example()), path)
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
