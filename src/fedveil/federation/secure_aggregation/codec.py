"""Unambiguous encoding as bytes: each field after its length."""

from collections.abc import Sequence

from fedveil.errors import FederationError

__all__ = ["Field", "malformed", "pack", "split_evenly", "unpack"]

Field = bytes | bytearray | memoryview | str | int
_LENGTH = 4


def pack(*fields: Field) -> bytes:
    """The fields, each after its length (4 bytes); text as UTF-8, whole numbers as 8 bytes."""
    parts: list[bytes | bytearray | memoryview] = []
    for one in fields:
        if isinstance(one, str):
            one = one.encode()
        elif isinstance(one, int):
            one = one.to_bytes(8, "big")
        parts += (memoryview(one).nbytes.to_bytes(_LENGTH, "big"), one)
    return b"".join(parts)


def unpack(data: bytes | memoryview) -> list[memoryview]:
    """The fields of `pack`, as views into `data`; raises FederationError for anything else."""
    view, fields, position = memoryview(data), [], 0
    while position < len(view):
        start = position + _LENGTH
        end = start + int.from_bytes(view[position:start], "big")
        if end > len(view):
            raise malformed()
        fields.append(view[start:end])
        position = end
    return fields


def malformed() -> FederationError:
    """The error for bytes that are not a message."""
    return FederationError(
        "a secure aggregation message cannot be read",
        "it must be complete, of the expected kind, and of this version of the protocol",
        "check that sites and coordinator run the same version of fedveil",
    )


def split_evenly(data: memoryview, size: int) -> Sequence[bytes]:
    """`data` in pieces of `size` bytes; raises FederationError if they do not fit."""
    if len(data) % size:
        raise malformed()
    return [bytes(data[i : i + size]) for i in range(0, len(data), size)]
