"""Execute notebooks in place and keep only what is worth committing.

    python notebooks/refresh.py [notebook ...]

Runs each notebook with this interpreter and strips what depends on the machine or the moment:
execution times, widget state, interpreter versions. Fails if an output names the home folder, the
repository's folder or the user.
"""

import getpass
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from ipykernel.kernelspec import install
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
KERNEL = "python3"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
    "language_info": {"name": "python"},
}
MAX_BYTES = 500_000


def execute(notebook: Any, folder: Path, prefix: Path, timeout_s: int = 300) -> None:
    """Run every cell in ``folder`` with this interpreter; its kernel is installed in ``prefix``.

    A kernel that is registered elsewhere under the same name is not used.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    install(prefix=str(prefix), kernel_name=KERNEL)
    specs = KernelSpecManager(kernel_dirs=[str(prefix / "share" / "jupyter" / "kernels")])
    manager = AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout_s,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def strip(notebook: Any) -> None:
    """Remove metadata that changes from machine to machine; outputs and their order stay."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{number:02d}"
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})


def private(text: str) -> list[str]:
    """Which names of this machine occur in ``text``."""
    names = {str(Path.home()), str(FOLDER.parent), sys.prefix, getpass.getuser()}
    return sorted(n for n in names if len(n) > 4 and n in text)


def refresh(path: Path) -> None:
    """Execute, strip and write back one notebook."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as prefix:
        execute(notebook, path.parent, Path(prefix))
    strip(notebook)
    text = nbformat.writes(notebook)
    if found := private(text):
        raise SystemExit(f"{path.name}: an output names {', '.join(found)}.")
    if len(text) > MAX_BYTES:
        raise SystemExit(f"{path.name} is {len(text):,} bytes long, more than {MAX_BYTES:,}.")
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path.name}: {len(text):,} bytes")


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(map(str, FOLDER.glob("*.ipynb")))):
        refresh(path.resolve())
