"""A calibration report as one HTML file: no scripts, nothing loaded from elsewhere.

Every string is escaped: names of GPUs, kernels and boards come from files that anyone may have
written. The page also forbids scripts and requests by its own content policy.
"""

from collections.abc import Mapping
from html import escape

from calibration.report import plots
from calibration.report.cells import Grid, Section
from calibration.report.contents import Report
from calibration.report.sections import sections
from calibration.report.text import BANNER
from energymodel.render import printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --paper: #fff; --soft: #f3f5f8; --line: #d8dde5;
  --good: #18794e; --bad: #c62a2f; --dim: #667085; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --paper: #14171c; --soft: #1d222a;
  --line: #343b47; --good: #4cc38a; --bad: #ff8589; --dim: #9aa4b2; } }
body { color: var(--ink); background: var(--paper); max-width: 72rem; margin: 0 auto;
  padding: 1.5rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p { max-width: 48rem; }
nav { color: var(--dim); font-size: .85rem; }
nav a { color: inherit; }
.banner { background: var(--bad); color: var(--paper); font-weight: 700; padding: .8rem 1rem;
  border-radius: 6px; max-width: none; }
.verdict { background: var(--soft); border-radius: 6px; padding: .6rem 1rem .6rem 2rem; }
.verdict li { margin: .35rem 0; max-width: 60rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--soft); }
.right { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
.unknown { color: var(--dim); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; font-weight: 600; }
svg { width: 100%; height: auto; color: var(--ink); } svg text { font-family: system-ui, sans-serif; }
@media (max-width: 32rem) { .figures { grid-template-columns: 1fr; } }
"""
# Cells that say how a target was met are coloured by what they say.
_CLASSES = {"met": "met", "missed": "missed", "not known": "unknown"}


def render_html(report: Report) -> str:
    """The whole report; without matplotlib it carries the tables only, and says so."""
    try:
        figures, missing = plots.render(report.plots), ""
    except ImportError:
        figures = {}
        missing = (
            "The plots are left out: matplotlib is not installed (pip install 'energymodel[plot]')."
        )
    title = f"Calibration of {report.gpu_name}"
    parts = [f"<h1>{_text(title)}</h1>"]
    if report.simulated:
        parts.append(f'<p class="banner" role="alert">{_text(BANNER)}</p>')
    if missing:
        parts.append(f"<p><strong>{_text(missing)}</strong></p>")
    all_sections = sections(report)
    links = (f'<a href="#part-{i}">{_text(s.title)}</a>' for i, s in enumerate(all_sections))
    parts.append(f"<nav>{' · '.join(links)}</nav>")
    parts += [_section(i, s, figures) for i, s in enumerate(all_sections)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(number: int, s: Section, figures: Mapping[str, tuple[str, str]]) -> str:
    parts = [f'<h2 id="part-{number}">{_text(s.title)}</h2>']
    if number == 0:
        items = "".join(f"<li>{_text(p)}</li>" for p in s.paragraphs)
        parts.append(f'<ul class="verdict">{items}</ul>')
    else:
        parts += [f"<p>{_text(p)}</p>" for p in s.paragraphs]
    parts += [_table(grid) for grid in s.grids]
    drawn = [figures[name] for name in s.figures if name in figures]
    if drawn:
        inner = "\n".join(
            f"<figure><figcaption>{_text(title)}</figcaption>\n{svg}</figure>"
            for title, svg in drawn
        )
        parts.append(f'<div class="figures">{inner}</div>')
    return f"<section>{''.join(parts)}</section>"


def _table(grid: Grid) -> str:
    right = [h.startswith(">") for h in grid.headers]
    head = "".join(
        _element("th", h.removeprefix(">"), "right" if r else "")
        for h, r in zip(grid.headers, right, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(c, r) for c, r in zip(row, right, strict=True)) + "</tr>"
        for row in grid.rows
    )
    shown = f"<thead><tr>{head}</tr></thead>" if any(grid.headers) else ""
    return f'<div class="wide"><table>{shown}<tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str, right: bool) -> str:
    return _element("td", text, "right" if right else _CLASSES.get(text, ""))


def _element(tag: str, text: str, style: str) -> str:
    opened = f'{tag} class="{style}"' if style else tag
    return f"<{opened}>{_text(text)}</{tag}>"


def _text(text: str) -> str:
    return escape(printable(text))
