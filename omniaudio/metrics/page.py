"""Pieces of a self-contained HTML page. Everything that comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path


@dataclass
class Page:
    """A page of sections under a header; ``render`` gives the whole HTML."""

    title: str
    lead: str
    facts: list[tuple[str, str]]  # label, value: shown in the header
    tiles: list[str] = field(default_factory=list)
    sections: list[tuple[str, str, str]] = field(default_factory=list)  # id, title, html
    footer: str = ""

    def add(self, anchor: str, title: str, lead: str, *parts: str) -> None:
        """Append a section; ``parts`` are html."""
        intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
        self.sections.append((anchor, title, intro + "\n".join(parts)))

    def render(self) -> str:
        css = Path(__file__).with_name("page.css").read_text("utf-8")
        facts = "".join(f"<div><b>{escape(label)}</b>{escape(value)}</div>" for label, value in self.facts)
        links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in self.sections)
        body = "".join(
            f'<section id="{anchor}"><h2>{escape(title)}</h2>{html}</section>\n'
            for anchor, title, html in self.sections
        )
        tiles = f'<div class="tiles">{"".join(self.tiles)}</div>' if self.tiles else ""
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(self.title)}</title>
<style>
{css}</style>
</head>
<body>
<header><div class="wrap"><h1>{escape(self.title)}</h1><p>{escape(self.lead)}</p>
<div class="facts">{facts}</div></div></header>
<nav><div class="wrap">{links}</div></nav>
<div class="wrap"><div style="height:34px"></div>
{tiles}
{body}</div>
<footer><div class="wrap">{escape(self.footer)}</div></footer>
</body>
</html>
"""


def card(*parts: str) -> str:
    return f'<div class="card">{"".join(parts)}</div>'


def tile(value: str | None, label: str) -> str:
    """A number to see first; None says that there is none yet."""
    shown = (
        f'<div class="value">{escape(value)}</div>' if value else '<div class="value none">not measured</div>'
    )
    return f'<div class="tile">{shown}<div class="label">{escape(label)}</div></div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of html cells. A column named ``#x`` is right-aligned and shown as ``x``."""
    kinds = [' class="num"' if name.startswith("#") else "" for name in columns]
    head = "".join(
        f"<th{kind}>{escape(name.lstrip('#'))}</th>" for name, kind in zip(columns, kinds, strict=True)
    )
    lines = (
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def command(text: str) -> str:
    """A command line, on a line of its own."""
    return f'<span class="command">{code(text)}</span>' if text else ""


def note(text: str) -> str:
    return f'<div class="note">{escape(text)}</div>'


def missing(text: str) -> str:
    """Says that something is not there, and what makes it."""
    return f'<div class="missing">{escape(text)}</div>'


def tag(text: str, kind: str = "") -> str:
    return f'<span class="tag {escape(kind)}">{escape(text)}</span>'


def image(src: str, alt: str) -> str:
    return f'<img src="{escape(src)}" alt="{escape(alt)}" loading="lazy">'


def player(title: str, src: str, remark: str = "") -> str:
    """An audio player with its title above and a remark below."""
    below = note(remark) if remark else ""
    sound = f'<audio controls controlslist="nodownload noplaybackrate" preload="metadata" src="{escape(src)}"></audio>'
    return f'<div class="player"><b>{escape(title)}</b>{sound}{below}</div>'


def chain(steps: Sequence[str]) -> str:
    """A line of boxes with arrows between them; names that begin with ``*`` are models."""
    boxes = (
        f'<span class="{"model" * step.startswith("*")}">{escape(step.lstrip("*"))}</span>' for step in steps
    )
    return f'<div class="chain">{"<i>→</i>".join(boxes)}</div>'


def words(text: str) -> str:
    """What a model wrote, however long it is."""
    return f'<div class="words">{escape(text)}</div>' if text else note("nothing")


def more(summary: str, text: str) -> str:
    """Long text behind a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
