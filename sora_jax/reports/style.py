"""The frame of the report page: its style, for light and dark, and nothing else."""

_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1d1f23; --soft: #6a6f78;
  --grid: #e4e5e8; --line-1: #2563c9; --line-2: #c2571b; }
@media (prefers-color-scheme: dark) { :root { --back: #131519; --card: #1b1e24; --text: #e6e7ea;
  --soft: #969ba6; --grid: #2e323a; --line-1: #6ea3ff; --line-2: #f0955c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 88rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
header { display: flex; align-items: baseline; gap: 1rem; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: .95rem; margin: 1rem 0 .4rem; color: var(--soft); font-weight: 600; }
p { margin: .2rem 0; }
.note, small, header p { color: var(--soft); font-size: .85rem; font-weight: 400; }
code, pre { font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { overflow: auto; max-height: 40rem; padding: 1rem; background: var(--card); border-radius: .5rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .5rem .9rem; }
.tiles b { display: block; font-size: 1.2rem; }
.tiles span { color: var(--soft); font-size: .8rem; }
.row { display: flex; flex-wrap: wrap; gap: .8rem 1rem; margin-bottom: .8rem; align-items: flex-start; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: left; vertical-align: top; }
tbody tr { border-top: 1px solid var(--grid); }
.wide td:not(:last-child), .wide th { white-space: nowrap; }
thead th { color: var(--soft); font-size: .82rem; font-weight: 500; }
.pictures { overflow-x: auto; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem;
  padding: .6rem .9rem; width: fit-content; max-width: 100%; }
.pictures tbody tr { border: 0; }
.pictures th, .pictures td { padding: .25rem .5rem .25rem 0; vertical-align: middle; }
.pictures tbody th { font-weight: 400; min-width: 7rem; max-width: 16rem; overflow-wrap: anywhere; }
.pictures img { display: block; border-radius: 3px; max-width: none; }
.pictures figure { margin: 0 0 1.2rem; }
.pictures ol { columns: 20rem; font-size: .85rem; margin: .3rem 0; }
img.small { image-rendering: pixelated; }
.chart { margin: 0; width: 440px; max-width: 100%; background: var(--card); border: 1px solid var(--grid);
  border-radius: .5rem; padding: .5rem .6rem .2rem; }
.chart figcaption { display: flex; justify-content: space-between; gap: .5rem; font-size: .85rem;
  padding: 0 .3rem; }
.key { margin-left: .8rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--grid); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line-1 { stroke: var(--line-1); } .line-2 { stroke: var(--line-2); }
.bar { fill: var(--line-1); }
.faint { opacity: .4; stroke-width: 1; }
summary { cursor: pointer; color: var(--soft); margin: .5rem 0; }
"""

# Filled by `str.format` with `title` and `body`, both escaped already.
HTML_PAGE = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    "<title>{title}</title><style>" + _STYLE.replace("{", "{{").replace("}", "}}") + "</style></head>"
    "<body>{body}</body></html>\n"
)
