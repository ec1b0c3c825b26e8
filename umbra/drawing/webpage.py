"""What the HTML pages share: one style, texts that are escaped, pictures inline; nothing comes from the network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STYLE = """
:root{--ink:#1d2329;--soft:#5b6670;--line:#e3e7ea;--accent:#2f5d8a;--bar:#c9d8e6}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.6rem 4rem;max-width:78rem;color:var(--ink);background:#fff;
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.75rem;font-weight:600;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;font-weight:600;margin:2.6rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1rem;font-weight:600;margin:1.4rem 0 .4rem}
p{max-width:52rem;margin:.4rem 0}.soft,figcaption{color:var(--soft)}
code,pre{font:.9em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:#f4f6f8}
code{padding:.1em .3em;border-radius:3px}
pre{font-size:.85rem;padding:.8rem 1rem;border-radius:6px;margin:.4rem 0 1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere}
nav{margin:.9rem 0 0}nav a{color:var(--accent);text-decoration:none;margin-right:1.1rem}
progress{width:100%;height:.7rem;margin:1rem 0 0;accent-color:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.8rem;margin:1.4rem 0}
.tile{border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem}
.tile b{display:block;font-size:1.4rem;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.tile b{white-space:nowrap}
.note{border-left:4px solid #3d8b5f;background:#f2f8f4;padding:.7rem 1rem;border-radius:0 6px 6px 0;margin:1rem 0}
.note.bad{border-color:#c0661b;background:#fdf6ee}.note ul{margin:.3rem 0;padding-left:1.2rem}
.note li{margin:.25rem 0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(21rem,1fr));gap:.4rem 2.4rem;align-items:start}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(21rem,1fr));gap:.8rem 1.6rem}
.curves svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;font-weight:600;padding:.8rem 0 .3rem}
th{font-weight:500;color:var(--soft);text-align:right;border-bottom:1px solid var(--line)}
td{text-align:right;border-bottom:1px solid #f0f2f4}th,td{padding:.25rem .5rem;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}td.words{text-align:left;white-space:normal}
td.bar{width:38%;min-width:6rem}td.bar i{display:block;height:.72em;background:var(--bar);border-radius:2px}
td.span{width:45%;min-width:9rem}
td.span div{position:relative;height:1em;background:linear-gradient(#f0f2f4,#f0f2f4) 0 50%/100% 1px no-repeat}
td.span i{position:absolute;top:.36em;height:.28em;background:var(--accent);border-radius:2px}
td.span b{position:absolute;top:.2em;width:.6em;height:.6em;margin-left:-.3em}
td.span b{border-radius:50%;background:var(--accent)}
td.off{background:#fbe5d2;font-weight:600}
table.facts{width:auto;font-size:inherit}table.facts th,table.facts td{border:0;text-align:left;white-space:normal}
table.facts th{padding:.2rem 1.6rem .2rem 0;vertical-align:top}table.facts td{padding:.2rem 0;overflow-wrap:anywhere}
figure{margin:0}img{display:block;width:100%;height:auto;border:1px solid var(--line);border-radius:4px}
img.plain{border:0;max-width:60rem}figcaption{font-size:.84rem;padding:.25rem 0 .9rem;overflow-wrap:anywhere}
.mask img,input[type=range]{max-width:64rem}
input[type=range]{width:100%;accent-color:var(--accent)}
.ecgs{display:grid;grid-template-columns:repeat(auto-fill,minmax(31rem,1fr));gap:.6rem 1.2rem}
summary{cursor:pointer;color:var(--accent);margin-top:1rem}
@media(max-width:36rem){.ecgs{grid-template-columns:1fr}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}h2{break-after:avoid}
 figure,.tile,tr{break-inside:avoid}.ecgs{grid-template-columns:1fr 1fr}*{print-color-adjust:exact}}
"""


def document(title: str, body: str, head: str = "", script: str = "") -> str:
    """A whole page; `body` and `head` are HTML, `title` is text."""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{head}'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body>{body}{code}</body></html>\n"
    )


def escaped(value: object) -> str:
    """A text as it stands in HTML."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def image(png: Path, alt: str, style: str = "") -> str:
    """A PNG inline; `style`: its class."""
    data = base64.b64encode(png.read_bytes()).decode()
    kind = f" class={style}" if style else ""
    return f'<img{kind} alt="{escaped(alt)}" src="data:image/png;base64,{data}">'


def tiles(found: Sequence[tuple[str, str]]) -> str:
    """Large figures in a row: (figure, what it is)."""
    cells = "".join(f"<div class=tile><b>{escaped(a)}</b><span class=soft>{escaped(b)}</span></div>" for a, b in found)
    return f"<div class=tiles>{cells}</div>"


@dataclass(frozen=True)
class Bar:
    """A cell of a table: a bar of `share` (0 to 1) of its width."""

    share: float


@dataclass(frozen=True)
class Span:
    """A cell of a table: a dot at `value` on a line from `low` to `high`, all 0 to 1 of the cell's width."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is marked if it is `off`."""

    text: str
    off: bool = False


@dataclass(frozen=True)
class Words:
    """A cell of a table with a sentence, which may be broken."""

    text: str


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """A table of texts and of the cells above."""
    head = "".join(f"<th scope=col>{escaped(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in rows)
    title = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return f"<div class=scroll><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _td(value: Any) -> str:
    if isinstance(value, Bar):
        return f'<td class=bar><i style="width:{100 * value.share:.1f}%"></i></td>'
    if isinstance(value, Span):
        line = f'<i style="left:{100 * value.low:.1f}%;width:{100 * (value.high - value.low):.1f}%"></i>'
        return f'<td class=span><div>{line}<b style="left:{100 * value.value:.1f}%"></b></div></td>'
    if isinstance(value, Words):
        return f"<td class=words>{escaped(value.text)}</td>"
    if isinstance(value, Cell):
        return f"<td{' class=off' if value.off else ''}>{escaped(value.text)}</td>"
    return f"<td>{escaped(value)}</td>"
