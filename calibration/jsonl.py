"""Append-only JSON lines: a killed program loses at most the line that it was writing."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from energymodel import io
from energymodel.errors import InputError, WorkError

T = TypeVar("T")


def repair(path: Path) -> None:
    """Make ``path`` ready to append to: folders made, a truncated last line dropped.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            if content and not content.endswith(b"\n"):
                kept = content.rfind(b"\n") + 1
                if _is_json(content[kept:]):
                    file.write(b"\n")
                else:
                    file.truncate(kept)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {_reason(error)}.") from error


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Keep other runs from appending to ``path`` meanwhile; a killed one lets go of it.

    Raises:
        InputError: the file cannot be written.
        WorkError: another run writes to it.
    """
    repair(path)
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkError(
                f"{path} is being written by another run: wait for it to end, or choose another --out."
            ) from error
        yield


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Write one line.

    Raises:
        WorkError: the line cannot be written.
        ValueError: a number is not finite.
    """
    line = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise WorkError(f"{path} cannot be written: {_reason(error)}.") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def read(path: Path, parse: Callable[[str, str], T]) -> Iterator[T]:
    """What ``parse(line, where)`` makes of each line; a truncated last line is left out.

    Raises:
        InputError: as ``parse`` does, of any line but an unfinished last one.
    """
    *lines, unfinished = io.read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        yield parse(line, f"{path} line {number}")
    if unfinished:
        try:
            last = parse(unfinished, f"{path} line {len(lines) + 1}")
        except InputError:
            return
        yield last
