"""Opaque bytes in Flower's messages: one uint8 array in one record, whatever they mean."""

from flwr.app import Array, ArrayRecord, Message, RecordDict

__all__ = ["MESSAGE_TYPE", "bytes_of", "content_of"]

MESSAGE_TYPE = "query"
_RECORD, _ARRAY = "fedveil", "bytes"


def content_of(data: bytes) -> RecordDict:
    """The content of a Flower message that carries the bytes."""
    array = Array(dtype="uint8", shape=(len(data),), stype="fedveil.bytes", data=data)
    return RecordDict({_RECORD: ArrayRecord({_ARRAY: array})})


def bytes_of(message: Message) -> bytes | None:
    """The bytes that a Flower message carries; None for a message that carries none."""
    if message.has_error() or not message.has_content():
        return None
    record = message.content.get(_RECORD)
    if not isinstance(record, ArrayRecord) or _ARRAY not in record:
        return None
    return bytes(record[_ARRAY].data)
