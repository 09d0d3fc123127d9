"""What command lines print: in ASCII where nothing else can be shown, within the width of the
terminal, to readers that may leave early. Depends on the standard library alone."""

from __future__ import annotations

import argparse
import codecs
import io
import locale
import os
import shutil
import sys
import textwrap
from typing import Any, NoReturn

# What our texts use beside ASCII.
IN_ASCII = {"σ": "sigma", "′": "'", "″": "''", "²": "^2", "³": "^3", "±": "+-", "×": "x", "·": "*"}
IN_ASCII |= {"≤": "<=", "≥": ">=", "→": "->", "∞": "inf", "µ": "u", "–": "-", "—": "-", "…": "..."}
ERRORS = "fused_sigmoid.in_ascii"


class Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def print_help(self, file: Any = None) -> None:
        show(self.format_help().rstrip())


def show(text: str) -> None:
    """Prints it; that nobody reads it any more is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer is flushed once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def width() -> int | None:
    """The columns of the terminal, or ``COLUMNS``; None where a line may be as long as it is."""
    return shutil.get_terminal_size((0, 0)).columns or None


def paragraph(text: str, columns: int | None, first: str = "") -> str:
    """The text in lines of so many columns, the first of which begins with ``first`` and the others
    below its end. ``columns`` None is one line."""
    # Spelled before it is broken into lines: a word is longer than a sign.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return textwrap.fill(
        text.encode(encoding, ERRORS).decode(encoding),
        # A column of its own under a long beginning is worse than a line that is too long.
        sys.maxsize if columns is None else max(columns, len(first) + 20),
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def fall_back_to_ascii() -> None:
    """From now on what standard output and error cannot encode is spelled in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if _ascii_alone() else None, errors=ERRORS)


def _ascii_alone() -> bool:
    """The C locale has no more, but Python writes UTF-8 there, asked to or not."""
    asked = "PYTHONIOENCODING" in os.environ or "PYTHONUTF8" in os.environ
    return not asked and locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    escaped = (
        IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters
    )
    return "".join(escaped), error.end


codecs.register_error(ERRORS, _spelled)
