"""The style of the report: one sheet, light and dark, from a wide screen down to a phone's 390 pixels."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d1f23; --soft: #5c626b; --line: #dfe1e5; --track: #eceef1;
  --s0: #1f6fd0; --s1: #c2571a; --s2: #2b8a5e; --s3: #8b4fc0; --s4: #a8791b; --s5: #c23b6a;
  --s6: #4a7d8c; --s7: #767b84;
  --good: #1d7a4c; --bad: #b3301f; --warn-paper: #fff5e0; --warn-line: #e0a73c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1d2024; --ink: #e9ebee; --soft: #a3a9b3; --line: #33373e; --track: #2a2e34;
    --s0: #5aa2f5; --s1: #f0904f; --s2: #55c08d; --s3: #bb8cf0; --s4: #dcb04e; --s5: #f07ba2;
    --s6: #7fb6c6; --s7: #9aa0aa;
    --good: #5ccb92; --bad: #ff8a75; --warn-paper: #33290f; --warn-line: #b98a2c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1080px; padding: 24px 20px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 18px 0 6px; }
p { margin: 0 0 12px; }
.soft, .note { color: var(--soft); }
.note { font-size: .9rem; max-width: 72ch; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 18px 0;
}
.warnings { background: var(--warn-paper); border-color: var(--warn-line); }
.warnings ul, .verdict ul { margin: 6px 0 0; padding-left: 1.2em; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 14px 0; }
.tile { border-left: 3px solid var(--s0); padding: 2px 0 2px 12px; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88rem; }
.row { display: grid; grid-template-columns: 230px 1fr 170px; gap: 2px 14px; align-items: center; padding: 5px 0; }
.row .value { text-align: right; white-space: pre-line; font-variant-numeric: tabular-nums; font-size: .92rem; }
.row .name { font-size: .92rem; line-height: 1.3; }
.row .name small { display: block; color: var(--soft); }
.row svg { grid-column: 2; grid-row: 1; }
.axis { color: var(--soft); font-size: .8rem; }
svg { display: block; width: 100%; overflow: visible; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--soft); }
svg .inside { fill: var(--card); font-weight: 600; font-size: 10px; }
svg .mark { fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .roof { stroke: var(--ink); stroke-width: 2; fill: none; }
svg .track { fill: var(--track); }
.plot { max-width: 620px; margin: 0 16px 14px 48px; }
.plot.wide { max-width: none; }
.plot .axis { margin-left: -44px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 0 12px; }
.plots .plot { max-width: none; }
.caution { border-left: 3px solid var(--warn-line); padding-left: 12px; max-width: 72ch; }
a { color: var(--s0); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 4px 0 8px; font-size: .88rem; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.scroll { overflow-x: auto; margin: 6px 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 5px 8px; text-align: right; border-bottom: 1px solid var(--line); overflow-wrap: normal; white-space: nowrap;
}
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; max-width: 14em; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8.5em; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.facts td:first-child { color: var(--soft); width: 32%; }
.case { border-top: 1px solid var(--line); padding: 12px 0 4px; }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; max-width: 860px; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: 6px; }
figcaption { font-size: .85rem; color: var(--soft); padding-top: 4px; line-height: 1.35; }
figcaption b { color: var(--ink); }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 640px) {
  body { padding: 16px 12px 40px; font-size: 15px; }
  h1 { font-size: 1.35rem; }
  section { padding: 14px 12px; }
  .row { grid-template-columns: 1fr auto; border-bottom: 1px solid var(--line); padding: 7px 0; }
  .row .value { grid-column: 2; grid-row: 1; }
  .row svg { grid-column: 1 / 3; grid-row: 2; }
  .masks { grid-template-columns: repeat(2, 1fr); }
  th, td { padding: 5px 5px; } table { font-size: .84rem; }
  th:first-child, td:first-child { min-width: 6em; }
  .tiles { grid-template-columns: 1fr 1fr; }
}
"""
