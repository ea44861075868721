"""`lavt-bench --report`: what a run measured as one HTML file that needs nothing else, not even a script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..._base.files import write_whole
from ..timing.result import Result
from . import charts
from .content import Bars, Block, Drawing, Section, Table, Text
from .format import NOTHING, bytes_text, headline, machine_rows, ms, rate, verdicts
from .parts import estimate, kernels, layers, parts, roofline
from .sections import fidelity, figures, latencies, ratios, splits, sweeps

_SECTIONS = (latencies, ratios, splits, parts, roofline, estimate, kernels, fidelity, layers, sweeps, figures)


def write_report(result: Result, path: Path) -> None:
    """Writes the report of a run, whole or not at all. Raises OSError."""
    write_whole(path, page(result).encode("utf-8"))


def page(result: Result) -> str:
    """The report as HTML. Sections that the run did not measure are left out; all text from outside is escaped."""
    sections = [section for make in _SECTIONS if (section := make(result)) is not None]
    body = _verdict(result) + _warnings(result) + "".join(map(_section, sections)) + _environment(result)
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(headline(result))}</title><link rel="icon" href="data:,"><style>{style}</style></head>\n'
        f"<body><main>{body}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    note = " ".join(filter(None, (section.note, section.reading)))
    blocks = "".join(map(_block, section.blocks))
    return f"<section><h2>{escape(section.title)}</h2>{_paragraph(note, 'note') if note else ''}{blocks}</section>"


def _block(block: Block) -> str:
    if isinstance(block, Drawing):
        return block.html
    if isinstance(block, Text):
        return _paragraph(block.text, block.kind, block.link)
    if isinstance(block, Bars):
        legend = charts.legend(block.colours) if block.colours else ""
        drawn = [(bar, *charts.bars(bar.shares)) for bar in block.rows]
        rows = (charts.row(bar.name, marks, bar.value, note=bar.note, height=high) for bar, marks, high in drawn)
        return legend + "".join(rows)
    return _table(block)


def _table(table: Table) -> str:
    """It scrolls by itself if it is wider than the page."""
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    top = _cells("th", table.columns)
    rows = "".join(_cells("td", row) for row in table.rows)
    return f'{title}<div class="scroll" tabindex="0"><table><thead>{top}</thead><tbody>{rows}</tbody></table></div>'


def _cells(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"


def _paragraph(text: str, kind: str = "", link: tuple[str, str] | None = None) -> str:
    style = f' class="{kind}"' if kind else ""
    anchor = f' <a href="{escape(link[0])}" rel="noreferrer">{escape(link[1])}</a>' if link else ""
    return f"<p{style}>{escape(text)}{anchor}</p>"


def _verdict(result: Result) -> str:
    engine = result.sides[0]
    facts = [
        (ms(engine.summary.median), "median of the image graph"),
        (ms(engine.summary.p99), "99th percentile"),
        (rate(engine.summary.throughput), "images a second"),
        (bytes_text(engine.memory.peak_bytes), "peak memory"),
    ]
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in facts
        if value != NOTHING
    )
    items = "".join(
        f'<li><span class="{tone}">{escape(word)}</span> {escape(text)}</li>' for tone, word, text in verdicts(result)
    )
    model = result.machine.cpu.model
    where = _paragraph(f"on {model}", "soft") if model else ""
    return (
        f'<section class="verdict"><h1>{escape(headline(result))}</h1>{where}'
        f'<div class="tiles">{tiles}</div><ul>{items}</ul></section>'
    )


def _warnings(result: Result) -> str:
    if not result.warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in result.warnings)
    note = _paragraph("What makes these figures less certain.", "note")
    return f'<section class="warnings"><h2>Warnings</h2>{note}<ul>{items}</ul></section>'


def _environment(result: Result) -> str:
    plain = result.to_dict()
    blocks = []
    for title in ("Machine", "Options"):
        lines = "".join(_cells("td", row) for row in machine_rows(plain[title.lower()]))
        blocks.append(f'<h3>{title}</h3><table class="facts"><tbody>{lines}</tbody></table>')
    return f"<section><h2>Environment</h2>{''.join(blocks)}</section>"
