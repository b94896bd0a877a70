"""Opaque bytes in Flower's messages: one value of one record, or an array if they are many."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

__all__ = ["MESSAGE_TYPE", "bytes_of", "content_of"]

MESSAGE_TYPE = "query"
_RECORD, _KEY = "fedveil", "bytes"
_ONE_PIECE = 2**20
"""Up to this many bytes are sent as one value. The SuperLink processes every object in a message separately, four
times, and this work limits a round. A value is one object; an array is three, but is sent in chunks."""


def content_of(data: bytes) -> RecordDict:
    """The content of a Flower message that carries the bytes."""
    if len(data) <= _ONE_PIECE:
        return RecordDict({_RECORD: ConfigRecord({_KEY: data})})
    array = Array(dtype="uint8", shape=(len(data),), stype="fedveil.bytes", data=data)
    return RecordDict({_RECORD: ArrayRecord({_KEY: array})})


def bytes_of(message: Message) -> bytes | None:
    """The bytes that a Flower message carries; None for a message that carries none."""
    if message.has_error() or not message.has_content():
        return None
    record = message.content.get(_RECORD)
    if not isinstance(record, ArrayRecord | ConfigRecord) or _KEY not in record:
        return None
    value = record[_KEY]
    if isinstance(value, Array):
        return bytes(value.data)
    return value if isinstance(value, bytes) else None
