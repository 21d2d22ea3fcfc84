"""A JSON document decoded one value at a time, so that memory holds one value and not the file."""

import os
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from energymodel.errors import InputError
from energymodel.io import DECODER

READ_CHARS = 1024 * 1024
MAX_VALUE = 256 * 1024 * 1024
"""Most characters of one value."""


class _Window:
    """The part of a file's text that is being decoded; ``at`` is where the next value starts."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = ""
        self.at = 0
        self.ended = False

    def grow(self) -> None:
        """Forget what is decoded and read as much again as is left, at least ``READ_CHARS``."""
        self.text = self.text[self.at :]
        self.at = 0
        more = self.file.read(max(READ_CHARS, len(self.text)))
        self.ended = not more
        self.text += more

    def next_char(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.grow()


def documents(file: TextIO, where: str, progress: Callable[[int, int], None]) -> Iterator[Any]:
    """The items of the JSON array in ``file``, or its JSON values one after another.

    Raises:
        InputError: The text is not JSON, or one of its values is too long.
    """
    total = os.fstat(file.fileno()).st_size
    window = _Window(file)
    number = 0
    try:
        in_array = window.next_char() == "["
        window.at += in_array
        while (char := window.next_char()) and not (in_array and char == "]"):
            if in_array and number:
                if char != ",":
                    raise InputError(f"{where} item {number}: a comma must follow it.")
                window.at += 1
                window.next_char()
            number += 1
            yield _value(window, f"{where} item {number}")
            progress(min(file.buffer.tell(), total), total)
        if in_array:
            window.at += 1
            if not char or window.next_char():
                raise InputError(f"{where} must end with the bracket that closes its array.")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} must be UTF-8 text; near item {number + 1} it is not."
        ) from error


def _value(window: _Window, where: str) -> Any:
    """The value at the start of the window, which grows until it holds the whole of it."""
    while True:
        try:
            value, end = DECODER.raw_decode(window.text, window.at)
        except JSONDecodeError as error:
            if window.ended:
                raise InputError(f"{where} must be JSON: {error.msg.lower()}.") from error
        except RecursionError as error:
            raise InputError(f"{where} must be JSON that is nested less deeply.") from error
        except ValueError as error:
            raise InputError(f"{where} must be JSON: {error}.") from error
        else:
            # What ends with the window may go on behind it.
            if end < len(window.text) or window.ended:
                window.at = end
                return value
        if len(window.text) - window.at > MAX_VALUE:
            raise InputError(f"{where} must be JSON of at most {MAX_VALUE:,} characters.")
        window.grow()
