"""What reports are made of: one HTML file of tables and drawings, no scripts, nothing from outside.

Every text passes ``html.escape``, names of models and warnings too, and a content security policy
allows the browser nothing but the styles of the file itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from energymodel.render import ENERGY, Ladder, percent, printable, quantity

# Width of drawings in pixels, height of one of their bars, and room for the names beside them.
WIDTH, BAR, NAMES = 720, 22, 190
COLOURS = ("#35618f", "#8a5a83", "#3f7f5f", "#b07d2b", "#a34b4b", "#5b6b7b", "#7a8f3a", "#4a8fa8")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1c2733; background: #fff; }
h1 { font-size: 1.35rem; margin-bottom: 0; } h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
table { border-collapse: collapse; } caption { text-align: left; color: #5b6b7b; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
tr + tr td { border-top: 1px solid #e3e8ee; } svg { display: block; margin: .4rem 0; }
.warning { color: #8a4b00; } .dim { color: #5b6b7b; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document of its parts."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{safe(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def warnings(texts: Iterable[str]) -> list[str]:
    """A paragraph for each."""
    return [f'<p class="warning">Warning: {safe(said)}</p>' for said in texts]


def safe(value: object) -> str:
    """Text that is safe in elements and in quoted attributes."""
    return escape(printable(value), quote=True)


def heading(text: str) -> str:
    """Of a section."""
    return f"<h2>{safe(text)}</h2>"


def share(part: float, whole: float) -> str:
    """A part in percent of the whole."""
    return percent(part / whole) if whole else "-"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """Rows under their heads, if any of these is not empty."""
    top = f"<caption>{safe(note)}</caption>" if note else ""
    if any(heads):
        top += "<tr>" + "".join(f"<th>{safe(h)}</th>" for h in heads) + "</tr>"
    body = "".join("<tr>" + "".join(f"<td>{safe(c)}</td>" for c in r) + "</tr>\n" for r in rows)
    return f"<table>{top}\n{body}</table>"


def bars(values: Mapping[str, float], title: str, ladder: Ladder = ENERGY) -> str:
    """A bar for each name, all from one zero; values in the unit of ``ladder``."""
    most = max((abs(value) for value in values.values()), default=0.0) or 1.0
    marks = []
    for i, (name, value) in enumerate(values.items()):
        y, colour = i * BAR, COLOURS[i % len(COLOURS)]
        width = (WIDTH - NAMES - 90) * max(value, 0.0) / most
        said = quantity(value, ladder)
        marks += [
            label(0, y + 15, name.replace("_", " ")),
            box(NAMES, y + 4, width, BAR - 8, colour=colour, title=f"{name}: {said}"),
            label(NAMES + width + 6, y + 15, said),
        ]
    return drawing(marks, len(values) * BAR + 4, title)


def drawing(marks: Iterable[str], height: float, title: str) -> str:
    """Marks on a sheet of ``WIDTH`` pixels."""
    return (
        f'<svg width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{safe(title)}" font-size="12" fill="#1c2733">{"".join(marks)}</svg>'
    )


def box(x: float, y: float, width: float, height: float, *, colour: str, title: str) -> str:
    """A filled rectangle whose title shows under the pointer."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" '
        f'fill="{colour}"><title>{safe(title)}</title></rect>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="2"/>'
    )


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    """Text at a point: its start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe(text)}</text>'


def curve(points: Sequence[tuple[float, float]], colour: str) -> str:
    """A line through points."""
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def dot(x: float, y: float, colour: str, title: str, size: float = 4.0) -> str:
    """A point whose title shows under the pointer."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="{colour}">'
        f"<title>{safe(title)}</title></circle>"
    )
