"""Style sheet of the HTML pages: readable on paper, in light and in dark, without any download."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6470;--line:#dde1e6;--paper:#fff;--panel:#f6f7f9;
--base:#9aa3ae;--result:#1f5fbf;--good:#176f3d;--good-paper:#e3f4e9;--bad:#a3261f;--bad-paper:#fbe7e5;
--c1:#1f5fbf;--c2:#d97706;--c3:#0f8b7d;--c4:#b83280;--c5:#7a5af5;--c6:#8a6d3b;--c7:#c2410c;--c8:#64748b}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a0a9b4;--line:#333a43;--paper:#14171b;
--panel:#1c2127;--base:#7d8793;--result:#6ea8ff;--good:#7fd6a2;--good-paper:#173325;--bad:#ff9d94;
--bad-paper:#3d1d1b;--c1:#6ea8ff;--c2:#f0a94a;--c3:#4fc3b5;--c4:#f08bc0;--c5:#a995ff;--c6:#c9a96a;
--c7:#ff8f5c;--c8:#94a3b8}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK JP",sans-serif}
header,main,nav{max-width:1040px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
h1{font-size:28px;line-height:1.25;margin:0}
h2{font-size:20px;margin:0 0 10px}
h3{font-size:15px;margin:22px 0 6px}
.subtitle{color:var(--soft);margin:4px 0 18px}
p{max-width:76ch;margin:8px 0}
a{color:var(--result)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;padding-top:12px;padding-bottom:12px;position:sticky;top:0;
background:var(--paper);border-bottom:1px solid var(--line);z-index:1;font-size:14px}
nav a{color:var(--soft);text-decoration:none}
nav a:hover,nav a:focus{color:var(--ink);text-decoration:underline}
section{padding:30px 0 6px;scroll-margin-top:40px}
.scroll{overflow-x:auto;margin:10px 0 14px}
table{border-collapse:collapse;width:100%;font-size:14px}
caption{text-align:left;color:var(--soft);padding-bottom:4px}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:middle;
font-weight:400}
thead th{color:var(--soft);font-size:12.5px;line-height:1.3;border-bottom-color:var(--soft);
vertical-align:bottom}
tbody th{font-weight:600;white-space:nowrap}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
.number{text-align:right;font-variant-numeric:tabular-nums}
tbody .number{white-space:nowrap}
.code{color:var(--soft);font-weight:400;margin-left:6px;font-size:12.5px}
.small{color:var(--soft);font-size:12.5px}
.bar{display:block;position:relative;height:11px;min-width:130px;background:var(--panel);border-radius:2px}
.bar+.bar{margin-top:3px}
.bar i{position:absolute;left:0;top:0;bottom:0}
.fill{border-radius:2px}.fill.base{background:var(--base)}.fill.result{background:var(--result)}
.whisker{margin:auto;height:2px;background:var(--ink);opacity:.75;min-width:2px}
.stacked{display:flex;overflow:hidden;min-width:240px}
.stacked i{position:static;box-shadow:inset -1px 0 0 var(--paper)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;padding:0;margin:8px 0;font-size:13px;
color:var(--soft)}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.k1{background:var(--c1)}.k2{background:var(--c2)}.k3{background:var(--c3)}.k4{background:var(--c4)}
.k5{background:var(--c5)}.k6{background:var(--c6)}.k7{background:var(--c7)}.k8{background:var(--c8)}
.kb{background:var(--base)}.kr{background:var(--result)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;margin:0 0 6px}
.tile{background:var(--panel);border-radius:6px;padding:12px 14px}
.tile b{display:block;font-size:23px;line-height:1.25;font-variant-numeric:tabular-nums;font-weight:650}
.tile span{color:var(--soft);font-size:13px}
.badge{border-radius:4px;padding:1px 8px;font-size:12.5px;font-weight:600;white-space:nowrap;
background:var(--panel);color:var(--soft)}
.badge.good{background:var(--good-paper);color:var(--good)}
.badge.bad{background:var(--bad-paper);color:var(--bad)}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}
.note,.missing{background:var(--panel);border-left:3px solid var(--base);padding:8px 12px;max-width:none;
border-radius:0 4px 4px 0;color:var(--soft);font-size:14px}
.missing{border-left-color:var(--c2)}
details{margin:10px 0}
summary{cursor:pointer;color:var(--soft);font-size:14px}
details[open]>summary{margin-bottom:6px}
pre{background:var(--panel);border-radius:4px;padding:10px 12px;overflow-x:auto;font-size:12.5px;
line-height:1.45}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:6px 22px;margin:8px 0}
.facts dt{color:var(--soft);font-size:12.5px}
.facts dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:14px 20px;margin:10px 0}
figure{margin:0}
figcaption{font-size:13.5px;font-weight:600;margin-bottom:2px}
figcaption .small{font-weight:400}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--soft);font-size:11px;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line);stroke-width:1}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .level{stroke:var(--base);stroke-width:1.5;stroke-dasharray:5 4}
svg .s1{stroke:var(--c1)}svg .s2{stroke:var(--c2)}svg .s3{stroke:var(--c3)}svg .s4{stroke:var(--c4)}
svg .s5{stroke:var(--c5)}svg .s6{stroke:var(--c6)}svg .s7{stroke:var(--c7)}svg .s8{stroke:var(--c8)}
svg .sb{stroke:var(--base)}svg .sr{stroke:var(--result)}
svg .d1{fill:var(--c1)}svg .d2{fill:var(--c2)}svg .d3{fill:var(--c3)}svg .d4{fill:var(--c4)}
svg .d5{fill:var(--c5)}svg .d6{fill:var(--c6)}svg .d7{fill:var(--c7)}svg .d8{fill:var(--c8)}
svg .db{fill:var(--base)}svg .dr{fill:var(--result)}
.sample{border-top:1px solid var(--line);padding:10px 0 4px}
.sample dl{display:grid;grid-template-columns:92px 1fr;gap:3px 12px;margin:0}
.sample dt{color:var(--soft);font-size:13px}
.sample dd{margin:0;overflow-wrap:anywhere}
.nothing{color:var(--soft);font-style:italic}
footer{max-width:1040px;margin:20px auto 40px;padding:0 24px;color:var(--soft);font-size:13px}
@media print{nav{display:none}section{break-inside:avoid-page}}
"""
