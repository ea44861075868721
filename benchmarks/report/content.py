"""What a report holds: sections of tables, bars and text, which a page and a terminal render alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text below the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """A name, one bar for each share from 0 to 1 (None: no bar), and a value in words, a line for each bar."""

    name: str
    shares: Sequence[float | None]
    value: str
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Bars below each other; `colours` names what the bars of each row are, if there are several."""

    rows: Sequence[Bar]
    columns: tuple[str, str, str]
    colours: Sequence[str] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is "", "note" or "caution". A link is an address and what it says."""

    text: str
    kind: str = ""
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class Drawing:
    """HTML that only a page can show."""

    html: str


Block = Table | Bars | Text | Drawing


@dataclass(frozen=True)
class Section:
    """`note` is said everywhere, `reading` explains what only a page draws."""

    title: str
    note: str
    blocks: Sequence[Block]
    reading: str = ""
