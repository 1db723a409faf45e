"""The efficiency report as Markdown, CSV and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STYLE = """
:root{--ink:#22303a;--soft:#5c6b76;--line:#dfe5e8;--accent:#1f6f5c;--bad:#b3261e}
body{font:15px/1.55 "Noto Sans","Noto Sans CJK JP","Helvetica Neue",Arial,sans-serif;color:var(--ink);
max-width:1160px;margin:2.5rem auto;padding:0 1.5rem;background:#fff}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}p,figcaption{color:var(--soft)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.82rem;margin:.6rem 0}
th,td{padding:.28rem .45rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{border-bottom:2px solid var(--ink);font-weight:600;text-align:right}th:first-child,td:first-child,
td.text,th.text{text-align:left}th:last-child.text{text-align:left}
.scroll{overflow-x:auto}.ok{color:var(--accent);font-weight:600}.bad{color:var(--bad);font-weight:700}
tr.bad td{background:#fdecea}figure{margin:1rem 0}img{max-width:100%}code{background:#f2f5f6;padding:0 .25rem}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}.card{border:1px solid var(--line);border-radius:8px;
padding:.6rem 1rem;min-width:8rem}.card b{display:block;font-size:1.35rem}.card span{color:var(--soft);font-size:.8rem}
.pieces span{display:inline-block;border:1px solid var(--line);border-radius:5px;padding:0 .4rem;margin:.15rem;
font-size:.85rem}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}figure{break-inside:avoid}}
"""

COLUMNS: dict[str, tuple[str, str, str]] = {
    "tokens": ("tokens", ",.0f", "tokens, special tokens left out"),
    "relative_to_reference": (
        "relative",
        ".3f",
        "tokens divided by those of the first tokenizer on the same text",
    ),
    "tokens_per_character": ("tokens / char", ".3f", "tokens per Unicode character"),
    "characters_per_token": ("chars / token", ".2f", "Unicode characters per token"),
    "bytes_per_token": ("bytes / token", ".2f", "UTF-8 bytes per token"),
    "fertility": ("fertility", ".2f", "tokens per word"),
    "continued_words": ("continued", ".1%", "words that are cut into two or more tokens"),
    "single_token_retention": ("single token", ".1%", "words that lie within one token"),
    "byte_fallback_rate": ("bytes", ".2%", "tokens that are a part of a character only"),
    "parity": ("parity", ".2f", "tokens divided by those of the aligned English text, same tokenizer"),
    "context_characters": ("context", ",.0f", "characters of this language that fill the model's context"),
    "relative_cost": (
        "FLOPs",
        ".3f",
        "training and prefill FLOPs for the same text, relative to the first tokenizer",
    ),
}


@dataclass(frozen=True)
class Section:
    """A titled part of the page: paragraphs of HTML and figures."""

    title: str
    body: str
    figures: tuple[tuple[Path, str], ...] = ()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None) -> str:
    """An HTML table; cells are escaped."""
    head = "".join(f"<th>{html.escape(item)}</th>" for item in header)
    body = []
    for number, row in enumerate(rows):
        mark = f' class="{classes[number]}"' if classes and classes[number] else ""
        body.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(item)}</td>" for item in row) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def cards(values: Mapping[str, str]) -> str:
    """A row of headline numbers."""
    items = (
        f"<div class=card><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"
        for label, value in values.items()
    )
    return f"<div class=cards>{''.join(items)}</div>"


def pieces_list(pieces: Sequence[str]) -> str:
    """Pieces as labels."""
    return '<p class="pieces">' + "".join(f"<span>{html.escape(piece)}</span>" for piece in pieces) + "</p>"


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """One self-contained page; figures become data URLs."""
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>" if section.title else "")
        parts.append(section.body)
        for path, caption in section.figures:
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        + "\n".join(parts)
        + "</body></html>\n"
    )


def metric_rows(
    tokenizers: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table: one row per language and tokenizer."""
    present = [
        key
        for key in COLUMNS
        if any(key in metrics for row in tokenizers.values() for metrics in row.values())
    ]
    header = ["language", "tokenizer", *(COLUMNS[key][0] for key in present)]
    rows = []
    for language in dict.fromkeys(item for row in tokenizers.values() for item in row):
        for name, row in tokenizers.items():
            metrics = row.get(language, {})
            cells = [format(metrics[key], COLUMNS[key][1]) if key in metrics else "–" for key in present]
            rows.append([language, name, *cells])
    return header, rows


def metric_legend() -> str:
    """What each column means, as HTML."""
    items = ", ".join(
        f"<b>{html.escape(name)}</b>: {html.escape(text)}" for name, _, text in COLUMNS.values()
    )
    return f"<p>{items}.</p>"


def as_markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"# {title}", "", "| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join("---" if number < 2 else "---:" for number in range(len(header))) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def as_csv(tokenizers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Every number in full: one row per tokenizer and language."""
    keys = list(dict.fromkeys(key for row in tokenizers.values() for item in row.values() for key in item))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["tokenizer", "language", *keys])
    for name, row in tokenizers.items():
        for language, metrics in row.items():
            writer.writerow([name, language, *(metrics.get(key, "") for key in keys)])
    return out.getvalue()
