"""``report.html`` of the corpus: one page, no external files, drawn from ``report.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tsugiki.data.filters.base import ordered_filters, rule_of


def _steps() -> list[str]:
    """In the order of the pipeline; the part of a rule's name before the dot."""
    before = ("skipped", "read", "blocked_url", "extraction", "pair")
    after = ("duplicate", "boilerplate", "contaminated")
    return [*before, *map(rule_of, ordered_filters()), *after]


def _histograms() -> list[tuple[str, str]]:
    """Name of a histogram and its title. Scores are of the documents that reach the rule."""
    return [
        ("characters", "Kept documents by characters"),
        ("cluster_size", "Kept documents by size of their cluster of near-duplicates"),
        *(
            (histogram.name, histogram.title)
            for entry in ordered_filters()
            for histogram in entry.facts.get("histograms", ())
        ),
    ]


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6470;--line:#dde1e6;--paper:#fff;--panel:#f6f7f9;
--kept:#1f5fbf;--gone:#d97706;--held:#0f8b7d}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a0a9b4;--line:#333a43;--paper:#14171b;
--panel:#1c2127;--kept:#6ea8ff;--gone:#f0a94a;--held:#4fc3b5}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK JP",sans-serif}
main{max-width:70rem;margin:0 auto;padding:2rem 1.2rem 4rem}h1{font-size:1.7rem;margin:0 0 .3rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem}h3{font-size:.95rem;margin:1.2rem 0 .3rem}
p.lead,.soft{color:var(--soft)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.28rem .8rem;text-align:right;
border-bottom:1px solid var(--line);white-space:nowrap}th{font-weight:600;color:var(--soft);font-size:.85rem}
th:first-child,td:first-child{text-align:left;padding-left:0}td.text{text-align:left;white-space:normal}
section{border-top:1px solid var(--line);margin-top:2.4rem}section h2{margin-top:1.4rem}
.charts{display:flex;flex-wrap:wrap;gap:1rem 2.4rem}svg{display:block;max-width:100%}svg text{fill:var(--ink);
font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}.kept{fill:var(--kept)}.gone{fill:var(--gone)}
.held{fill:var(--held)}details{margin:.3rem 0}summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.6rem .8rem;margin:.3rem 0;
font:13px/1.5 ui-monospace,"Noto Sans Mono CJK JP",monospace;max-height:14rem;overflow:auto}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .35em 0 1em;vertical-align:-.05em}
"""


def corpus_page(values: dict[str, Any]) -> str:
    """The page for the values of ``report.json``."""
    sources = values["sources"]
    offered = sum(source["offered"] for source in sources)
    kept = sum(source["kept"]["documents"] for source in sources)
    size = sum(source["kept"]["bytes"] for source in sources)
    seconds = sum(values["seconds"].values())
    parts = [
        "<h1>Corpus report</h1>",
        f"<p class=lead>{kept:,} of {offered:,} documents kept ({_percent(kept, offered)}), "
        f"{_megabytes(size)} of text, {len(sources)} sources, {seconds:,.0f} s.</p>",
        _overview(sources),
        _languages(sources),
        _evaluation(values),
        *(_source(source) for source in sources),
        _times(values),
    ]
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width='
        f'device-width,initial-scale=1"><title>Corpus report</title><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _megabytes(size: float) -> str:
    if size < 1e5:
        return f"{size / 1e3:,.1f} kB"
    return f"{size / 1e6:,.2f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<div class=scroll><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"


def _overview(sources: list[dict[str, Any]]) -> str:
    head = ("source", "language", "read", "with text", "after filters", "kept", "kept %", "text", "held out")
    rows = [
        (
            f'<a href="#{escape(source["name"])}">{escape(source["name"])}</a>',
            source["language"],
            f"{source['read']['documents']:,}",
            f"{source['extracted']['documents']:,}",
            f"{source['filtered']['documents']:,}",
            f"{source['kept']['documents']:,}",
            _percent(source["kept"]["documents"], source["offered"]),
            _megabytes(source["kept"]["bytes"]),
            f"{source['heldout']['documents']:,}",
        )
        for source in sources
    ]
    return "<h2>Sources</h2>" + _table(head, rows)


def _languages(sources: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(source["language"] for source in sources))
    rows = []
    for name in names:
        members = [source for source in sources if source["language"] == name]
        found: dict[str, int] = {}
        for source in members:
            for label, count in source["histograms"].get("language_found", {}).items():
                found[label] = found.get(label, 0) + count
        others = sorted(
            ((label, count) for label, count in found.items() if label != name), key=lambda item: -item[1]
        )
        rows.append(
            (
                name,
                str(len(members)),
                f"{sum(source['kept']['documents'] for source in members):,}",
                _megabytes(sum(source["kept"]["bytes"] for source in members)),
                ", ".join(f"{escape(label)} {count:,}" for label, count in others[:5]) or "–",
            )
        )
    return "<h2>Languages</h2>" + _table(
        ("language", "sources", "documents", "text", "other languages found"), rows
    )


def _evaluation(values: dict[str, Any]) -> str:
    if "evaluation" not in values:
        return ""
    sets = values["evaluation"]
    rows = [
        (
            escape(source["name"]),
            escape(name),
            *(f"{counts[key]:,}" for key in ("documents", "items", "hits")),
        )
        for source in values["sources"]
        for name, counts in source["contamination"].items()
    ]
    head = ("source", "evaluation set", "documents", "items", "hits")
    return (
        f"<h2>Evaluation data</h2><p class=soft>{sets['items']:,} items were looked for, "
        f"{sets['too_short']:,} of them too short for a match. Every hit is in contamination.jsonl.</p>"
        + (_table(head, rows) if rows else "<p>No hits.</p>")
    )


def _source(source: dict[str, Any]) -> str:
    name = escape(source["name"])
    counters = ", ".join(
        f"{escape(key.replace('_', ' '))} {value:,}" for key, value in source["counters"].items()
    )
    histograms = source["histograms"]
    limits = source["limits"]
    charts = "".join(
        _histogram(title + (f", {limits[key]}" if key in limits else ""), histograms[key])
        for key, title in _histograms()
        if histograms.get(key)
    )
    return (
        f'<section id="{name}"><h2>{name} <span class=soft>{source["language"]}, {source["kind"]}</span></h2>'
        f"{_waterfall(source)}<h3>Lengths and scores</h3>"
        "<p class=soft>A bin is named by its lower end; a score counts the documents that reach its rule.</p>"
        f"<div class=charts>{charts}</div>"
        + (f"<p class=soft>Changed without dropping: {counters}.</p>" if counters else "")
        + _rules(source)
        + "</section>"
    )


def _step(rule: str) -> str:
    return rule.split(".", 1)[0]


def _waterfall(source: dict[str, Any]) -> str:
    """Documents that each step leaves and takes, from what was read to what is kept."""
    dropped: dict[str, int] = {}
    for rule, count in source["dropped"].items():
        dropped[_step(rule)] = dropped.get(_step(rule), 0) + count["documents"]
    order = [step for step in _steps() if step in dropped] + sorted(set(dropped) - set(_steps()))
    kept = source["kept"]["documents"]
    total = kept + sum(dropped.values())
    if not total:
        return "<p class=soft>No documents.</p>"
    width, left, height = 620, 130, 22
    rows: list[str] = []
    remaining = total
    for place, step in enumerate(order):
        gone = dropped[step]
        remaining -= gone
        rows.append(_bar(place * height, escape(step), remaining, gone, total, width, left))
    place = len(order)
    held = source["heldout"]["documents"]
    scale = width / total
    rows.append(
        f'<text x="{left - 8}" y="{place * height + 15}" text-anchor=end>kept</text>'
        f'<rect class=kept x="{left}" y="{place * height + 3}" '
        f'width="{(kept - held) * scale:.1f}" height=15 rx=2 />'
        f'<rect class=held x="{left + (kept - held) * scale:.1f}" y="{place * height + 3}" '
        f'width="{max(held * scale, 1.5 if held else 0):.1f}" height=15 rx=2 />'
        f'<text class=soft x="{left + kept * scale + 8:.1f}" y="{place * height + 15}">{kept:,}</text>'
    )
    size = (place + 1) * height + 4
    legend = (
        '<p class=soft><span class=key style="background:var(--kept);margin-left:0"></span>left over'
        '<span class=key style="background:var(--gone)"></span>dropped by this step'
        '<span class=key style="background:var(--held)"></span>held out</p>'
    )
    return (
        f"<h3>Documents, step by step ({total:,} read or refused)</h3>{legend}"
        f'<svg role=img aria-label="documents left after each step" width="{left + width + 90}" '
        f'height="{size}" viewBox="0 0 {left + width + 90} {size}">{"".join(rows)}</svg>'
    )


def _bar(top: int, label: str, remaining: int, gone: int, total: int, width: int, left: int) -> str:
    scale = width / total
    end = left + remaining * scale
    lost = max(gone * scale, 1.5)
    return (
        f'<text x="{left - 8}" y="{top + 15}" text-anchor=end>{label}</text>'
        f'<rect class=kept opacity=.35 x="{left}" y="{top + 3}" '
        f'width="{remaining * scale:.1f}" height=15 rx=2 />'
        f'<rect class=gone x="{end:.1f}" y="{top + 3}" width="{lost:.1f}" height=15 rx=2 />'
        f'<text class=soft x="{end + lost + 8:.1f}" y="{top + 15}">−{gone:,}</text>'
    )


def _histogram(title: str, bins: dict[str, int]) -> str:
    # "<= 0000100" sorts before "> 0100000" and is shown without the zeros.
    items = [(_bin_label(label), count) for label, count in sorted(bins.items())]
    most = max(count for _, count in items)
    width, left, height = 170, 70, 18
    rows = "".join(
        f'<text x="{left - 8}" y="{place * height + 13}" text-anchor=end>{escape(label)}</text>'
        f'<rect class=kept x="{left}" y="{place * height + 2}" width="{max(1.0, count / most * width):.1f}" '
        "height=13 rx=2 />"
        f'<text class=soft x="{left + count / most * width + 6:.1f}" y="{place * height + 13}">'
        f"{count:,}</text>"
        for place, (label, count) in enumerate(items)
    )
    size = len(items) * height + 4
    return (
        f'<div><h3>{escape(title)}</h3><svg role=img aria-label="{escape(title)}" '
        f'width="{left + width + 60}" height="{size}">{rows}</svg></div>'
    )


def _bin_label(label: str) -> str:
    if "." in label:
        return f"{float(label):g}"
    sign, _, number = label.rpartition(" ")
    if not number.isdigit():
        return label
    return f"{sign.replace('<=', '≤')} {int(number):,}".strip()


def _rules(source: dict[str, Any]) -> str:
    if not source["dropped"]:
        return "<p class=soft>Nothing was dropped.</p>"
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for sample in source["samples"]:
        by_rule.setdefault(sample["rule"], []).append(sample)
    total = source["kept"]["documents"] + sum(count["documents"] for count in source["dropped"].values())
    ordered = sorted(source["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))
    rows = [
        (
            escape(rule),
            f"{count['documents']:,}",
            _percent(count["documents"], total),
            _megabytes(count["bytes"]),
        )
        for rule, count in ordered
    ]
    samples = "".join(
        f"<details><summary>{escape(rule)} <span class=soft>{_samples(len(by_rule[rule]))}</span></summary>"
        + "".join(_sample(sample) for sample in by_rule[rule][:3])
        + "</details>"
        for rule, _ in ordered
        if rule in by_rule
    )
    return (
        "<h3>Rules</h3>"
        + _table(("rule", "documents", "of all", "text"), rows)
        + (f"<h3>Samples of what was dropped</h3>{samples}" if samples else "")
    )


def _samples(count: int) -> str:
    return f"{count} sample" + ("s" if count > 1 else "")


def _sample(sample: dict[str, Any]) -> str:
    facts = [escape(sample["id"])]
    facts += [escape(str(sample[key])) for key in ("url", "detail") if sample.get(key)]
    if "language_share" in sample:
        facts.append(f"share in the language {sample['language_share']}")
    text = escape(sample["text"][:700]) + ("…" if len(sample["text"]) > 700 else "")
    return f"<p class=soft>{' · '.join(facts)}</p><pre>{text}</pre>"


def _times(values: dict[str, Any]) -> str:
    passes = [(escape(name), f"{seconds:,.1f}") for name, seconds in values["seconds"].items()]
    steps: dict[str, float] = {}
    for source in values["sources"]:
        for step, seconds in source["seconds"].items():
            steps[step] = steps.get(step, 0.0) + seconds
    total = sum(steps.values())
    rows = [
        (escape(step), f"{seconds:,.1f}", _percent(seconds, total))
        for step, seconds in sorted(steps.items(), key=lambda item: -item[1])
    ]
    return (
        "<section><h2>Where the time went</h2><div class=charts><div><h3>Passes, seconds</h3>"
        + _table(("pass", "s"), passes)
        + "</div><div><h3>Steps of the first pass, seconds of all workers</h3>"
        + _table(("step", "s", "share"), rows)
        + "</div></div></section>"
    )
