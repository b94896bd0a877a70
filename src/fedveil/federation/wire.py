"""Requests and replies as bytes: a format that can only carry values.

A frame is ``magic (4) | version (2) | header length (4) | header | parts``, integers little-endian. The
header is UTF-8 JSON: the kind of the message, its small fields, and for each part its name, type and shape.
The parts are raw little-endian arrays or opaque bytes, one after the other, with nothing before, between or
after them.

Decoding validates everything: every length is checked before it is used, types come from a fixed list, no object
is constructed by name, and a frame that is one byte too long or too short is refused.
"""

import dataclasses
import json
import math
import struct
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from fedveil.errors import FederationError
from fedveil.federation.messages import Declined, Reply, Request, SecureReply, SecureRequest

__all__ = [
    "KINDS",
    "MAX_FRAME",
    "VERSION",
    "Array",
    "Frame",
    "WireError",
    "decode",
    "encode",
    "pack",
    "unpack",
]

VERSION = 2
MAX_FRAME = 2**31
"""Default limit on a frame's length in bytes: a vector of 250 million float64."""

_MAGIC = b"FVWR"
_PREFIX = struct.Struct("<4sHI")
_MAX_HEADER = 2**20
_MAX_PARTS = 4096
_MAX_DIMENSIONS = 4
_DTYPES = ("<f8", "<f4", "<i8", "<i4", "<u8", "<u4", "|u1")

Array = npt.NDArray[Any]
T = TypeVar("T")

KINDS: dict[str, type[Any]] = {
    "request": Request,
    "reply": Reply,
    "declined": Declined,
    "secure-request": SecureRequest,
    "secure-reply": SecureReply,
}
"""Dataclasses that `pack` and `unpack` support, by the name of their kind."""


class WireError(FederationError):
    """Bytes that are not a message of this protocol; they had no effect."""

    def __init__(
        self, found: str, remedy: str = "check that the peer runs fedveil, and the same version"
    ) -> None:
        super().__init__(found, "a message must follow fedveil's wire format", remedy)

    def __reduce__(self) -> tuple[type["WireError"], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.found, self.remedy)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: a kind, small fields that JSON can hold, named arrays and named opaque bytes."""

    kind: str
    head: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)


def encode(frame: Frame) -> bytes:
    """The frame as bytes; equal frames give equal bytes.

    Raises:
        WireError: a value that the format cannot carry (an object array, NaN in a JSON field).
    """
    parts: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for name, value in sorted(frame.arrays.items()):
        array = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in _DTYPES or array.ndim > _MAX_DIMENSIONS:
            raise WireError(f"array {name} has type {array.dtype} and {array.ndim} dimensions")
        parts.append({"name": name, "dtype": array.dtype.str, "shape": list(value.shape)})
        chunks.append(array.tobytes())
    for name, blob in sorted(frame.blobs.items()):
        parts.append({"name": name, "size": len(blob)})
        chunks.append(blob)
    body = {"kind": frame.kind, "head": frame.head, "parts": parts}
    try:
        header = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise WireError(f"a field cannot be written as JSON ({error})") from None
    if len(header) > _MAX_HEADER or len(parts) > _MAX_PARTS:
        raise WireError(f"the header has {len(header):,} bytes and {len(parts)} parts")
    return b"".join([_PREFIX.pack(_MAGIC, VERSION, len(header)), header, *chunks])


def decode(data: bytes, *, limit: int = MAX_FRAME) -> Frame:
    """The frame that the bytes hold. Arrays are read-only views of ``data``.

    Raises:
        WireError: the bytes are not an output of `encode`.
    """
    if len(data) > limit:
        raise WireError(
            f"a frame of {len(data):,} bytes arrived, {limit:,} are allowed", "use a smaller model"
        )
    if len(data) < _PREFIX.size:
        raise WireError(f"a frame of {len(data)} bytes is too short")
    magic, version, header_length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(f"the first bytes are {magic!r}")
    if version != VERSION:
        raise WireError(
            f"the peer speaks version {version} of the wire format, this side version {VERSION}",
            "install the same fedveil version at the coordinator and at every site",
        )
    start = _PREFIX.size + header_length
    if header_length > _MAX_HEADER or start > len(data):
        raise WireError(f"the header is said to have {header_length:,} bytes")
    kind, head, parts = _header(data[_PREFIX.size : start])
    arrays: dict[str, Array] = {}
    blobs: dict[str, bytes] = {}
    for part in parts:
        name, size = _part(part)
        if name in arrays or name in blobs or start + size > len(data):
            raise WireError(f"part {name!r} comes twice or is cut short")
        if "dtype" in part:
            dtype = np.dtype(part["dtype"])
            flat = np.frombuffer(data, dtype, count=size // dtype.itemsize, offset=start)
            arrays[name] = flat.reshape(part["shape"])
        else:
            blobs[name] = bytes(data[start : start + size])
        start += size
    if start != len(data):
        raise WireError(f"{len(data) - start:,} bytes follow the last part")
    return Frame(kind, head, arrays, blobs)


def _header(raw: bytes) -> tuple[str, dict[str, Any], list[Any]]:
    try:
        header = json.loads(raw, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
        json.dumps(
            header, ensure_ascii=False
        ).encode()  # an unpaired surrogate has no bytes, and cannot be printed
    except (ValueError, RecursionError) as error:
        raise WireError(f"the header is not JSON ({str(error)[:80]})") from None
    if not isinstance(header, dict) or set(header) != {"kind", "head", "parts"}:
        raise WireError("the header lacks its three entries")
    kind, head, parts = header["kind"], header["head"], header["parts"]
    if not (
        isinstance(kind, str) and 0 < len(kind) <= 64 and isinstance(head, dict) and isinstance(parts, list)
    ):
        raise WireError("the header's entries have the wrong types")
    if len(parts) > _MAX_PARTS:
        raise WireError(f"the frame has {len(parts):,} parts, {_MAX_PARTS:,} are allowed")
    return kind, head, parts


def _part(part: object) -> tuple[str, int]:
    """Name and size in bytes of a part, from its entry in the header."""
    if not isinstance(part, dict) or not isinstance(part.get("name"), str) or len(part["name"]) > 256:
        raise WireError("a part has no name")
    if set(part) == {"name", "size"}:
        if not _is_count(part["size"]):
            raise WireError(f"part {part['name']!r} has no size")
        return part["name"], part["size"]
    shape = part.get("shape")
    if set(part) != {"name", "dtype", "shape"} or not isinstance(shape, list) or part["dtype"] not in _DTYPES:
        raise WireError(f"part {part['name']!r} has no type and shape")
    size = np.dtype(part["dtype"]).itemsize
    if len(shape) > _MAX_DIMENSIONS or not all(_is_count(side) for side in shape):
        raise WireError(f"part {part['name']!r} has an impossible shape")
    if math.prod(max(side, 1) for side in shape) * size > MAX_FRAME:  # also where another side is 0
        raise WireError(f"part {part['name']!r} has an impossible shape")
    return part["name"], math.prod(shape) * size


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FRAME


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a JSON number")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def pack(message: Any) -> bytes:
    """A message of one of the `KINDS` as bytes; with fields of closed types, arrays or bytes."""
    kind = next((name for name, cls in KINDS.items() if type(message) is cls), None)
    if kind is None:
        raise WireError(f"a {type(message).__name__} is not a message of this protocol")
    head: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    blobs: dict[str, bytes] = {}
    for item in dataclasses.fields(message):
        value = getattr(message, item.name)
        if isinstance(value, np.ndarray):
            arrays[item.name] = value
        elif isinstance(value, bytes):
            blobs[item.name] = value
        else:
            head[item.name] = value
    return encode(Frame(kind, head, arrays, blobs))


def unpack(data: bytes, expected: type[T] | types.UnionType, *, limit: int = MAX_FRAME) -> T:
    """The message that the bytes hold, of the expected class (or union of them), every field checked."""
    frame = decode(data, limit=limit)
    allowed = get_args(expected) or (expected,)
    cls = KINDS.get(frame.kind)
    if cls is None or cls not in allowed:
        raise WireError(f"a message of kind {frame.kind!r} arrived")
    given: dict[str, Any] = {**frame.head, **frame.arrays, **frame.blobs}
    hints = get_type_hints(cls, include_extras=True)
    if set(given) != set(hints) or len(given) != len(frame.head) + len(frame.arrays) + len(frame.blobs):
        raise WireError(f"a {frame.kind} has the fields {', '.join(sorted(given))[:200]}")
    values = {name: _checked(given[name], hint, f"{frame.kind}.{name}") for name, hint in hints.items()}
    return cls(**values)  # type: ignore[no-any-return]


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value if it has the type that the field is declared with; lists become tuples.

    Text and whole numbers need a rule (`Matching`, `Within`) in addition to their type.
    """
    origin = get_origin(hint)
    if origin is Annotated:
        plain, rule = get_args(hint)
        closed = value if plain in (str, int) and type(value) is plain else None
        checked = _checked(value, plain, where) if closed is None else closed
        if rule.holds(checked):
            return checked
    elif origin in (Union, types.UnionType):
        for choice in get_args(hint):
            try:
                return _checked(value, choice, where)
            except WireError:
                continue
    elif origin is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_checked(item, get_args(hint)[0], where) for item in value)
    elif origin is np.ndarray:
        wanted = get_args(get_args(hint)[1])[0]
        if isinstance(value, np.ndarray) and value.dtype == wanted:
            return value
    elif hint in (None, type(None)):
        if value is None:
            return None
    elif hint is bytes and isinstance(value, bytes):
        return value
    raise WireError(f"{where} is {_short(value)}")


def _short(value: object) -> str:
    """A received value, abbreviated for an error; long values are never converted to text in full."""
    match value:
        case str():
            return repr(value[:40])
        case bool() | float() | None:
            return repr(value)
        case int():
            return repr(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
        case _:
            return f"a {type(value).__name__}"
