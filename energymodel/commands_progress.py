"""A bar on stderr for work that takes longer than a moment, where somebody looks on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from energymodel.progress import listening

# Work that is done by then shows no bar.
PATIENCE_S = 1.0


@contextmanager
def bar() -> Iterator[None]:
    """Show how far the work inside is; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_interactive:
        yield
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task("", total=None)
    began = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - began > PATIENCE_S:
            progress.start()
            progress.update(task, description=what, completed=done, total=total)

    try:
        with listening(show):
            yield
    finally:
        progress.stop()
