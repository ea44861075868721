"""The report's sections: each takes the whole run and gives HTML, or nothing where the run did not measure it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import report_charts as charts
from .report_format import bytes_text, finite, ms, number, percent, ratio_text, scaled, table

Result = Mapping[str, Any]
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
        f"Time of a call, each round a tick, from 0 to {ms(scale[1])}. The box holds the middle half of the rounds, "
        "the thick line is the median. Sides were measured in turn, round by round."
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
    """What a whole call consists of, for each side that was split."""
    found = []
    for side in result.get("sides") or []:
        split = {name: finite(value) for name, value in (side.get("split") or {}).items()}
        times = {name: value for name, value in split.items() if value is not None}
        if sum(times.values()) > 0:
            found.append((str(side.get("name", "")), times))
    if not found:
        return ""
    names = list(dict.fromkeys(name for _, times in found for name in times))
    most = max(sum(times.values()) for _, times in found)
    rows = [
        charts.row(name, charts.stacked([times.get(part, 0.0) / most for part in names]), ms(sum(times.values())))
        for name, times in found
    ]
    cells = [[part, *(ms(times.get(part)) for _, times in found)] for part in names]
    note = "Median of each step, side by side in the colours of the legend."
    figures = table(["step", *(name for name, _ in found)], cells)
    return section("What a call consists of", note, charts.legend(names), *rows, figures)


def fidelity(result: Result) -> str:
    """Figures of each precision, accuracy over latency, and pictures of where precisions disagree."""
    rows = result.get("fidelity") or []
    if not rows:
        return ""
    head = ["precision", "mean IoU", "lost", "IoU with FP32", "equal pixels", "logit error"]
    cells = [
        [
            row.get("name", ""),
            number(row.get("mean_iou"), ".2f"),
            number(row.get("drop"), "+.2f"),
            number(row.get("iou_with_fp32"), ".2f"),
            percent(row.get("pixel_agreement"), 3),
            number(row.get("relative_error"), ".1e"),
        ]
        for row in rows
    ]
    count = finite(rows[0].get("sentences"))
    over = f" over {count:.0f} sentences" if count else ""
    note = f"What each precision keeps of FP32{over}. IoU and what is lost of it in percent and points."
    return section("Precision and accuracy", note, table(head, cells), _accuracy_plot(result, rows), _overlays(rows))


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
    x = charts.Axis("median time of a call, ms", 0.0, 1.15 * max(one[2] for one in points))
    y = charts.Axis("mean IoU, percent", *charts.spread([one[3] for one in points], 0.25))
    marks = "".join(
        charts.dot(charts.place(x, y, time, accuracy), name, charts.colour(i), name=f"{name}: {time:.1f} ms")
        for name, i, time, accuracy in points
    )
    return "<h3>Accuracy over time</h3>" + charts.plot(x, y, marks, "mean IoU of each precision over its median time")


def _overlays(rows: Sequence[Result]) -> str:
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
            f"<figcaption><b>{escape(name)}</b> {escape(_agreement(one))}</figcaption></figure>"
            for name, one in pictures
        )
        blocks.append(f'<div class="case"><p>“{sentence}”</p><div class="masks">{figures}</div></div>')
    return "".join(blocks)


def _agreement(one: Result) -> str:
    pixels = percent(one.get("pixel_agreement"), 2)
    return "" if pixels == "–" else f"{pixels} of pixels as FP32"


def sweeps(result: Result) -> str:
    """Batch and thread sweeps: a line for each side of each setting, and what was left out."""
    rows, skipped = [], []
    for entry in result.get("sweeps") or []:
        threads, batch = number(entry.get("threads"), "d"), number(entry.get("batch"), "d")
        for side in entry.get("sides") or []:
            summary = side.get("summary") or {}
            times = [ms(summary.get(key)) for key in ("median", "p90")]
            peak = bytes_text((side.get("memory") or {}).get("peak_bytes"))
            rows.append([side.get("name", ""), threads, batch, *times, number(summary.get("throughput"), ".2f"), peak])
        skipped += [
            f"{one.get('name', '')} with batch {batch}: {one.get('reason', '')}" for one in entry.get("skipped") or []
        ]
    if not rows:
        return ""
    left_out = "".join(f"<li>{escape(one)}</li>" for one in skipped)
    head = ["side", "threads", "batch", "median", "p90", "images/s", "peak memory"]
    blocks = [table(head, rows), f"<p>Left out:</p><ul>{left_out}</ul>" if skipped else ""]
    return section("Sweeps", "The same sides with other batches or threads; a dash is what the run chose.", *blocks)


def _numbers(values: Any) -> list[float]:
    return [found for one in values or [] if (found := finite(one)) is not None]
