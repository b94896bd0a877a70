"""The command line: thin commands over the library, with plain wording, a progress bar and clear errors."""

from fedveil.cli.main import app, main

__all__ = ["app", "main"]
