"""Files that are whole or absent: written beside their place, synced, then renamed into it."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["json_line", "write_atomic", "write_json", "write_private"]


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, also after a crash or on a full disk, finds the old one or the new one, whole."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_private(path: Path, content: bytes) -> None:
    """Write a file atomically that only this user can ever read."""

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)

    write_atomic(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity become null, since JSON has neither."""
    text = json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def json_line(value: Any) -> str:
    """One compact line of JSON with its newline."""
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Plain JSON values from tuples, numpy scalars and arrays, and non-finite floats."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
