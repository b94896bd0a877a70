"""The log of the programs that run for long: one line per event on standard error, as text or as JSON."""

import json
import logging
from typing import Literal

from fedveil.cli.output.console import OneLine
from fedveil.errors import printable

__all__ = ["LogFormat", "log_to_stderr"]

LogFormat = Literal["text", "json"]


class JsonLine(logging.Formatter):
    """One JSON object per event: time, logger, level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        values = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "logger": record.name,
            "level": record.levelname,
            "message": printable(record.getMessage()),
        }
        return json.dumps(values)


def log_to_stderr(style: LogFormat = "text") -> None:
    """Log events of fedveil, and warnings of other libraries, for the journal."""
    handler = logging.StreamHandler()
    text = OneLine("%(asctime)s %(name)s %(levelname)s: %(message)s")
    handler.setFormatter(JsonLine() if style == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("fedveil").setLevel(logging.INFO)
    logging.getLogger("flwr").setLevel(logging.WARNING)
