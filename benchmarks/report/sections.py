"""The report's sections: each takes the whole run and gives HTML, or nothing where the run did not measure it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..timing.latency import PER_CALL
from . import charts as charts
from .format import finite, ms, number, percent, rate, ratio_text, reference_of, section, table

Result = Mapping[str, Any]
_SWEPT = {"threads": "threads", "batch": "images in a call"}
_APART = {
    "decode": "JPEG to pixels, once a file",
    "text_cold": "text, once a new sentence",
    "text_cached": "text, a sentence met before",
}
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def latencies(result: Result) -> str:
    """Each side's rounds as a strip on one scale."""
    timed = [(side, _numbers(side.get("seconds"))) for side in result.get("sides") or []]
    every = [value for _, seconds in timed for value in seconds]
    if not every:
        return ""
    scale = (0.0, 1.02 * max(every))
    rows = []
    for i, (side, seconds) in enumerate(timed):
        if not seconds:
            continue
        summary = side.get("summary") or {}
        note = ", ".join(str(one) for one in (side.get("kind"), side.get("precision")) if one)
        median = ms(summary.get("median"))
        label = f"{side.get('name', '')}: median {median}, from {ms(min(seconds))} to {ms(max(seconds))}"
        strip = charts.strip(seconds, scale, charts.colour(i))
        rows.append(charts.row(str(side.get("name", "")), strip, median, note=note, label=label))
    note = (
        f"Time of the image graph, each round a tick, from 0 to {ms(scale[1])}. The box holds the middle half of the "
        "rounds, the thick line is the median. Sides were measured in turn, round by round."
    )
    return section("Latency", note, *rows, *_scatter(timed))


def _scatter(timed: Sequence[tuple[Result, list[float]]]) -> list[str]:
    """Each side's rounds as a share of its own median, on one scale."""
    shares = []
    for i, (side, seconds) in enumerate(timed):
        median = finite((side.get("summary") or {}).get("median"))
        if seconds and median:
            shares.append((i, str(side.get("name", "")), [value / median for value in seconds]))
    if not shares:
        return []
    scale = charts.spread([1.0, *(value for _, _, one in shares for value in one)])
    rows = ["<h3>Scatter about the median</h3>"]
    for i, name, one in shares:
        value = f"{100 * (min(one) - 1):+.1f} … {100 * (max(one) - 1):+.1f} %"
        rows.append(charts.row(name, charts.strip(one, scale, charts.colour(i)), value))
    return rows


def ratios(result: Result) -> str:
    """Each ratio of medians with its interval, beside 1."""
    found = [(one, [finite(one.get(key)) for key in ("ratio", "low", "high")]) for one in result.get("ratios") or []]
    whole = [(one, [v for v in values if v is not None]) for one, values in found if None not in values]
    if not whole:
        return ""
    names = [side.get("name") for side in result.get("sides") or []]
    scale = charts.spread([1.0, *(value for _, values in whole for value in values)])
    rows = []
    for one, (ratio, low, high) in whole:
        name = str(one.get("name", ""))
        fill = charts.colour(names.index(name) if name in names else 0)
        marks = charts.interval(ratio, low, high, scale, fill)
        rows.append(charts.row(name, marks, ratio_text(one), note=f"over {one.get('against', '')}"))
    note = (
        "Ratio of median times: below 1 the first is faster. The bar is the 95 % interval; the dashed line is 1, and "
        "where the bar crosses it no difference was shown."
    )
    return section("Ratios", note, *rows)


def splits(result: Result) -> str:
    """What a call consists of, for each side that was split; what a call does not have stands apart."""
    found = []
    for side in result.get("sides") or []:
        split = {name: finite(value) for name, value in (side.get("split") or {}).items()}
        times = {name: value for name, value in split.items() if value is not None}
        if sum(times.get(step, 0.0) for step in PER_CALL) > 0:
            found.append((side, times))
    if not found:
        return ""
    sums = [sum(times.get(step, 0.0) for step in PER_CALL) for _, times in found]
    calls = [finite(side.get("call")) for side, _ in found]
    most = max(*sums, *(call or 0.0 for call in calls))
    rows = []
    for (side, times), whole, call in zip(found, sums, calls, strict=True):
        bar = charts.stacked([times.get(step, 0.0) / most for step in PER_CALL])
        measured = whole if call is None else call
        rows.append(charts.row(str(side.get("name", "")), bar, ms(measured), note=f"steps add up to {ms(whole)}"))
    names = [str(side.get("name", "")) for side, _ in found]
    note = (
        "Image in memory, sentence encoded before: median of each step in the colours of the legend, and beside the "
        "bar that of whole calls, measured beside their steps. Shares are of the steps' sum."
    )
    steps = _steps(found, sums, calls)
    apart = [[words, *(ms(times.get(step)) for _, times in found)] for step, words in _APART.items()]
    blocks = [charts.legend(PER_CALL), *rows, table(["step", *names], steps)]
    blocks += ["<h3>Not in a call</h3>", table(["once a sentence, or a file", *names], apart)]
    return section("What a call consists of", note, *blocks)


def _steps(
    found: Sequence[tuple[Result, Mapping[str, float]]], sums: Sequence[float], calls: Sequence[float | None]
) -> list[list[str]]:
    """The steps of a call with their shares, their sum, the whole call, and what of it is not the image graph."""
    cells = [
        [
            step,
            *(
                f"{ms(times.get(step))}, {percent(times.get(step, 0.0) / whole)}"
                for (_, times), whole in zip(found, sums, strict=True)
            ),
        ]
        for step in PER_CALL
    ]
    around = []
    for side, _ in found:
        overhead = side.get("overhead") or {}
        around.append(f"{ms(overhead.get('seconds'))}, {percent(overhead.get('share'))}")
    cells += [["all steps", *map(ms, sums)], ["a call, measured whole", *map(ms, calls)]]
    return [*cells, ["all but the image graph, median of rounds", *around]]


def fidelity(result: Result) -> str:
    """Figures of each precision, accuracy over latency, and pictures of where precisions disagree."""
    rows = result.get("fidelity") or []
    if not rows:
        return ""
    reference = reference_of(rows)
    head = ["precision", "mean IoU", "lost", f"IoU with {reference}", "equal pixels", "logit error"]
    cells = [
        [
            row.get("name", ""),
            number(row.get("mean_iou"), ".2f"),
            number(row.get("drop"), "+.2f"),
            number(row.get("iou_with_reference", row.get("iou_with_fp32")), ".2f"),
            percent(row.get("pixel_agreement"), 3),
            number(row.get("relative_error"), ".1e"),
        ]
        for row in rows
    ]
    count = finite(rows[0].get("sentences"))
    over = f" over {count:.0f} sentences" if count else ""
    note = (
        f"What each precision keeps of {reference}{over}: logits, pixels and masks are compared with its. IoU in "
        "percent, what is lost of it in points."
    )
    blocks = (table(head, cells), _accuracy_plot(result, rows), _overlays(rows, reference))
    return section("Precision and accuracy", note, *blocks)


def _accuracy_plot(result: Result, rows: Sequence[Result]) -> str:
    """Mean IoU over median time, for precisions that were timed as well."""
    points = []
    for row in rows:
        accuracy, name = finite(row.get("mean_iou")), row.get("name")
        for i, side in enumerate(result.get("sides") or []):
            median = finite((side.get("summary") or {}).get("median"))
            matches = name in (side.get("name"), side.get("precision")) and side.get("kind") in ("bundle", None, "onnx")
            if matches and median is not None and accuracy is not None:
                points.append((str(name), i, 1e3 * median, accuracy))
                break
    if len(points) < 2:
        return ""
    x = charts.Axis("median time of the image graph, ms", 0.0, 1.15 * max(one[2] for one in points))
    y = charts.Axis("mean IoU, percent", *charts.spread([one[3] for one in points], 0.25))
    marks = "".join(
        charts.dot(charts.place(x, y, time, accuracy), charts.colour(i), text=name, name=f"{name}: {time:.1f} ms")
        for name, i, time, accuracy in points
    )
    return "<h3>Accuracy over time</h3>" + charts.plot(x, y, marks, "mean IoU of each precision over its median time")


def _overlays(rows: Sequence[Result], reference: str) -> str:
    """The cases side by side: one case a line, one precision a picture."""
    cases: dict[Any, list[tuple[str, Result]]] = {}
    for row in rows:
        for place, one in enumerate(row.get("overlays") or []):
            if _BASE64.fullmatch(str(one.get("image_png_base64", ""))):
                cases.setdefault(one.get("case", place), []).append((str(row.get("name", "")), one))
    if not cases:
        return ""
    blocks = ["<h3>Where precisions disagree most</h3>"]
    for pictures in cases.values():
        sentence = escape(str(pictures[0][1].get("sentence", "")))
        figures = "".join(
            f'<figure><img alt="mask by {escape(name)}" src="data:image/png;base64,{one["image_png_base64"]}">'
            f"<figcaption><b>{escape(name)}</b> {escape(_agreement(one, reference))}</figcaption></figure>"
            for name, one in pictures
        )
        blocks.append(f'<div class="case"><p>“{sentence}”</p><div class="masks">{figures}</div></div>')
    return "".join(blocks)


def _agreement(one: Result, reference: str) -> str:
    pixels = percent(one.get("pixel_agreement"), 2)
    return "" if pixels == "–" else f"{pixels} of pixels as {reference}"


def sweeps(result: Result) -> str:
    """Images a second by threads and by batch, a line for each side; the figures; and what was left out."""
    entries = result.get("sweeps") or []
    if not entries:
        return ""
    sides = [str(side.get("name", "")) for side in result.get("sides") or []]
    names = list(dict.fromkeys([*sides, *(str(one.get("name", "")) for one in entries)]))
    plots = "".join(_sweep_plot([one for one in entries if one.get("sweep") == kind], kind, names) for kind in _SWEPT)
    rows = []
    for one in entries:
        if "skipped" not in one:
            summary = one.get("summary") or {}
            where = [number(one.get(kind), "d") for kind in _SWEPT]
            times = [ms(summary.get(key)) for key in ("median", "p90")]
            compared = "" if finite(one.get("ratio")) is None else ratio_text(one)
            rows.append([one.get("name", ""), *where, *times, rate(summary.get("throughput")), compared])
    engine = sides[0] if sides else "the engine"
    blocks = [charts.legend(names), f'<div class="plots">{plots}</div>'] if plots else []
    blocks.append(table(["side", *_SWEPT, "median", "p90", "images/s", f"{engine} over it (95 %)"], rows))
    skipped = [
        f"{one.get('name', '')} with {kind} {number(one.get(kind), 'd')}: {one['skipped']}"
        for kind in _SWEPT
        for one in entries
        if one.get("sweep") == kind and "skipped" in one
    ]
    if skipped:
        blocks.append(f"<p>Left out:</p><ul>{''.join(f'<li>{escape(one)}</li>' for one in skipped)}</ul>")
    note = "The same sides with other threads or batches, measured in turn; a dash is what the run chose."
    return section("Sweeps", note, *blocks)


def _sweep_plot(entries: Sequence[Result], kind: str, names: Sequence[str]) -> str:
    """Images a second over the number of threads or images a call."""
    points: dict[str, list[tuple[float, float]]] = {}
    for one in entries:
        value, speed = finite(one.get(kind)), finite((one.get("summary") or {}).get("throughput"))
        if value is not None and speed is not None:
            points.setdefault(str(one.get("name", "")), []).append((value, speed))
    every = [point for one in points.values() for point in one]
    if not every:
        return ""
    at = tuple(sorted({value for value, _ in every}))
    x = charts.Axis(_SWEPT[kind], at[0] / 1.15, at[-1] * 1.15, log=True, at=at)
    y = charts.Axis("images a second", 0.0, 1.1 * max(speed for _, speed in every))
    marks = ""
    for name, measured in points.items():
        fill, places = charts.colour(names.index(name)), [charts.place(x, y, *point) for point in sorted(measured)]
        marks += charts.lines(places, f'stroke="{fill}" stroke-width="2"')
        for point, (at_value, at_speed) in zip(places, sorted(measured), strict=True):
            said = f"{name}, {kind} {at_value:g}: {rate(at_speed)} images a second"
            marks += charts.dot(point, fill, name=said)
    return charts.plot(x, y, marks, f"images a second by {kind}")


def _numbers(values: Any) -> list[float]:
    return [found for one in values or [] if (found := finite(one)) is not None]
