"""A calibration report as plain text of at most 100 columns."""

import io
from typing import TYPE_CHECKING

from calibration.report.cells import Grid
from calibration.report.contents import Report
from calibration.report.sections import sections
from energymodel.render import printable

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
# Cells up to this long are not folded.
WHOLE = 20
BANNER = "SIMULATED: these numbers come from a simulated GPU, not from a measurement."


def render_text(report: Report) -> str:
    """The whole report; text from files is printed with its control characters escaped."""
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False)
    title = f"Calibration of {printable(report.gpu_name)}"
    console.print(Text(title), Text("=" * min(len(title), WIDTH)), sep="\n")
    if report.simulated:
        console.print(Text(f"\n*** {BANNER} ***"))
    for section in sections(report):
        console.print(Text(f"\n{section.title}\n{'-' * len(section.title)}"))
        for paragraph in section.paragraphs:
            console.print(Text(printable(paragraph)))
        for grid in section.grids:
            console.print()
            console.print(_table(grid))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(grid: Grid) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=any(grid.headers), padding=(0, 2, 0, 0), pad_edge=False)
    for index, header in enumerate(grid.headers):
        right = header.startswith(">")
        widest = max((len(row[index]) for row in grid.rows), default=0)
        table.add_column(
            header.removeprefix(">"),
            justify="right" if right else "left",
            overflow="fold",
            # Names and numbers stay whole, long sentences fold.
            min_width=widest if widest <= WHOLE else None,
        )
    for row in grid.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
