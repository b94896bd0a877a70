"""The messages that a site service refused: a bounded file of JSON lines, for the people of the hospital."""

import json
import logging
import logging.handlers
from pathlib import Path

from fedveil.errors import printable

__all__ = ["keep_refusals", "read_refusals"]

_NAME = "refusals.jsonl"
_LARGEST = 1_000_000
_SHOWN = 200


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The event as one line of JSON, of limited length."""
        time = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        return json.dumps({"time": time, "what": printable(record.getMessage())[:1000]})


def keep_refusals(folder: Path) -> logging.Handler:
    """Write every warning of the site service to ``refusals.jsonl`` too; half of it is dropped when it is too long."""
    handler = logging.handlers.RotatingFileHandler(
        folder / _NAME, maxBytes=_LARGEST, backupCount=1, encoding="utf-8", delay=True
    )
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Line())
    logging.getLogger("fedveil.site").addHandler(handler)
    return handler


def read_refusals(folder: Path) -> list[tuple[str, str]]:
    """Time and words of the newest refusals, newest first."""
    try:
        lines = (folder / _NAME).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines[: -_SHOWN - 1 : -1]:
        try:
            values = json.loads(line)
            found.append((str(values["time"]), str(values["what"])))
        except (ValueError, KeyError, TypeError):
            continue  # an incomplete line of a full disk
    return found
