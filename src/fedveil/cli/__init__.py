"""The command line: thin verbs over the library, in plain words, with a progress bar and clear errors."""

from fedveil.cli.main import app, main

__all__ = ["app", "main"]
