"""Output of the command line: the console, errors and log lines."""

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
    """One line per event, whatever its values contain, so that no value can forge a log line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of printable text."""
        return printable(super().format(record))


def fail(message: str) -> SystemExit:
    """Print one error line and return the exit with code 2."""
    errors.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
    return SystemExit(2)


@contextmanager
def speak_plainly() -> Iterator[None]:
    """Turn errors that a user can cause into one clear line and exit code 2; others are bugs and keep their
    traceback."""
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
        errors.print("\ninterrupted; finished work is stored: continue with --resume")
        raise SystemExit(130) from None


def _operating_system(error: OSError) -> str:
    where = error.filename or "a file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return (
                f"no space is left for {where}; its files need space: free some, then "
                "repeat the command, with --resume if it has that option."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{where} cannot be written or read; the program needs permission: choose another place."
        case _:
            return f"{where}: {error.strerror or error}; the operating system refused it: check the path and try again."
