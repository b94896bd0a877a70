"""Encoder files of this machine, each under its own SHA-256; a file that was altered is never used."""

import hashlib
import os
from pathlib import Path

from fedveil.errors import InvalidValue
from fedveil.io import write_atomic

__all__ = ["LARGEST_FILE", "Store", "encoder_folder", "read_limited"]

LARGEST_FILE = 2 * 2**30 - 1
"""Bytes; Protocol Buffers, in which ONNX graphs are written, hold no more."""


def encoder_folder() -> Path:
    """``FEDVEIL_ENCODERS``, or ``fedveil/encoders`` in ``XDG_DATA_HOME`` or ``~/.local/share``."""
    own, shared = os.environ.get("FEDVEIL_ENCODERS"), os.environ.get("XDG_DATA_HOME")
    if own:
        return Path(own)
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".local" / "share"
    return base / "fedveil" / "encoders"


class Store:
    """A folder of encoder files, by default `encoder_folder`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = encoder_folder() if folder is None else folder

    def add(self, content: bytes) -> str:
        """Store a file under its SHA-256, which is returned."""
        digest = hashlib.sha256(content).hexdigest()
        if not self.has(digest):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self.folder / digest, lambda file: file.write(content))
        return digest

    def has(self, digest: str) -> bool:
        """Whether a file of this name is stored; `read` says whether it is intact."""
        return (self.folder / digest).is_file()

    def read(self, digest: str, name: str) -> bytes:
        """The content with this SHA-256. What is hashed is what is returned: no file is read twice.

        Raises:
            InvalidValue: it is not stored here, or was altered.
        """
        path = self.folder / digest
        if not path.is_file():
            raise InvalidValue(
                f"the encoder {name} with SHA-256 {digest} is not registered here",
                "features are computed with exactly the file that the study names",
                "get that file and register it: fedveil encoder add FILE",
            )
        content = read_limited(path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise InvalidValue(
                f"{path} was altered",
                "an encoder must have the SHA-256 that the study names",
                "delete it, get the file again and register it: fedveil encoder add FILE",
            )
        return content


def read_limited(path: Path) -> bytes:
    """A file's content.

    Raises:
        InvalidValue: it is missing, unreadable or too large.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InvalidValue(
                f"{path} has {size:,} bytes", f"an encoder has at most {LARGEST_FILE:,}", "use a smaller one"
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidValue(
            f"{path} cannot be read ({error.strerror or error})", "an encoder is one file", "check the path"
        ) from None
