"""Standard output and standard error that never cost a sound: they may be closed, full, or read by nobody.

Under `main`, `sys.stdout` and `sys.stderr` are a `Stream` each, so that what libraries print is safe too.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class ReaderLeft(Exception):
    """Nobody reads standard output any more, as after `| head`."""


class Stream:
    """A text stream whose writes never raise; `failure` holds the error that lost the first text.

    Python sets a stream that was closed before it started (`>&-`, `pythonw`) to None. Writing to None raises
    AttributeError, and `print(..., file=None)` prints to standard output.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.failure: Exception | None = None
        if stream is None:
            self.failure = OSError(errno.EBADF, "it is closed")
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a path that a terminal cannot show

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self.failure is None and self.stream is not None and self.stream.isatty()

    def _try(self, method: str, *arguments: str) -> None:
        if self.failure is not None:
            return
        try:
            getattr(self.stream, method)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: Python's own object was closed
            self.failure = error
            self._discard_buffer()

    def _discard_buffer(self) -> None:
        """Point the descriptor at the null device: Python flushes at exit, and exits 120 if that fails."""
        with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Put a `Stream` in place of `sys.stdout` and `sys.stderr` while the block lasts."""
    before = sys.stdout, sys.stderr
    _occupy_closed_descriptors()
    sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _occupy_closed_descriptors() -> None:
    """Open the null device on descriptors 0 to 2 where they are closed.

    Otherwise the next file opened, such as a sound, gets one of them, and a library written in C that prints
    writes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one


def print_result(text: str) -> None:
    """Print what a command was asked for; raises ReaderLeft or OSError where it cannot be printed."""
    print(text, flush=True)
    require_printed()


def require_printed() -> None:
    """Raise ReaderLeft or OSError where a part of standard output is lost."""
    failure = getattr(sys.stdout, "failure", None)
    if isinstance(failure, BrokenPipeError):
        raise ReaderLeft from failure
    if failure is not None:
        reason = getattr(failure, "strerror", None) or str(failure)
        raise OSError(getattr(failure, "errno", None) or errno.EIO, reason, "standard output") from failure


def print_path(path: object) -> None:
    """Print where a file was written; never raises, because the file is there."""
    print(path, flush=True)


def report(message: str) -> None:
    """Print a message on standard error, on one line."""
    print(one_line(message), file=sys.stderr, flush=True)


def one_line(message: str) -> str:
    return f"audioldm2: {' '.join(message.splitlines())}"
