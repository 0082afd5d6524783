"""One self-contained HTML page: pictures inside it, no script, nothing fetched. Sections are plain data; all text is escaped here."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from jaxseg.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #f6f8fa; --accent: #0b6aa8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0f1419; --line: #30363d; --soft: #161b22; --accent: #58a6ff; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 66rem; margin: 0 auto; padding: 1.5rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
p.notice { border-left: 4px solid var(--accent); background: var(--soft); padding: .6rem .9rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; border-radius: 4px; background: white; }
figcaption { font-size: .9rem; opacity: .85; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { background: var(--soft); } caption { text-align: left; font-size: .9rem; padding-bottom: .3rem; opacity: .85; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""
NOTICE = "Research use only. Not a medical device: no decision about a patient may rest on these results alone."


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture: PNG bytes, what it shows for those who cannot see it, and a caption."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below a head; cells are text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Text | Figure | Table]


def write_page(out: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the page whole or not at all; returns its path. Raises StorageError where it cannot be written."""
    body = "\n".join(_section(section) for section in sections)
    return write_text(
        out,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n"
        f'<p class="notice">{escape(NOTICE)}</p>\n{body}\n</body>\n</html>\n',
    )


def _section(section: Section) -> str:
    return f"<section>\n<h2>{escape(section.title)}</h2>\n" + "\n".join(_part(part) for part in section.parts) + "\n</section>"


def _part(part: Text | Figure | Table) -> str:
    if isinstance(part, Text):
        return f"<p>{escape(part.text)}</p>"
    if isinstance(part, Figure):
        data = base64.b64encode(part.png).decode()
        caption = f"<figcaption>{escape(part.caption)}</figcaption>" if part.caption else ""
        return f'<figure><img alt="{escape(part.alt)}" src="data:image/png;base64,{data}">{caption}</figure>'
    caption = f"<caption>{escape(part.caption)}</caption>" if part.caption else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in part.head)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
