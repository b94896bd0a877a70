"""How the command line speaks: one console, one way to end in an error, one progress display."""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from fedveil.errors import FedveilError, printable

__all__ = ["OneLine", "console", "errors", "speak_plainly"]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class OneLine(logging.Formatter):
    """One event, one line, whatever a value in it holds: so nobody can write lines that were never logged."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of printable text."""
        return printable(super().format(record))


def fail(message: str) -> SystemExit:
    """Print one error line and make the exit that ends the program with code 2."""
    errors.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
    return SystemExit(2)


@contextmanager
def speak_plainly() -> Iterator[None]:
    """Turn what a user can cause into one clear line and exit code 2; the rest is a bug and keeps its traceback."""
    try:
        yield
    except FedveilError as error:
        raise fail(str(error)) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        raise fail(_operating_system(error)) from None
    except KeyboardInterrupt:
        errors.print("\ninterrupted; what was finished is kept: go on with --resume")
        raise SystemExit(130) from None


def _operating_system(error: OSError) -> str:
    where = error.filename or "a file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return (
                f"no space is left for {where}; a run needs room for its files: free some, then use --resume."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{where} may not be written or read; the program needs permission: choose another place."
        case _:
            return f"{where}: {error.strerror or error}; the operating system refused it: check the path and try again."
