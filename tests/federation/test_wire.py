import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedveil.federation.messages import Declined, Reply, Request
from fedveil.federation.wire import VERSION, Frame, WireError, decode, encode, pack, unpack

REQUEST = Request(
    study="ab" * 32,
    release="training",
    round=3,
    attempt=7,
    participants=("a", "b"),
    parameters=np.arange(5.0),
)
ANSWER = {"site": "a", "study": "ab" * 32, "release": "training", "round": 3, "attempt": 7}

names = st.text(min_size=1, max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    scalars | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
arrays = st.sampled_from(["<f8", "<f4", "<i8", "<u4", "<u8", "|u1"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)


@st.composite
def frames(draw):
    keys = draw(st.lists(names, max_size=5, unique=True))
    cut = draw(st.integers(0, len(keys)))
    return Frame(
        draw(names),
        draw(st.dictionaries(names, json_values, max_size=4)),
        {key: draw(arrays) for key in keys[:cut]},
        {key: draw(st.binary(max_size=40)) for key in keys[cut:]},
    )


@given(frames())
@settings(max_examples=100, deadline=None)
def test_frames_survive_the_wire(frame):
    got = decode(encode(frame))
    assert (got.kind, got.head, got.blobs) == (frame.kind, frame.head, frame.blobs)
    assert got.arrays.keys() == frame.arrays.keys()
    for name, array in frame.arrays.items():
        assert got.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(got.arrays[name], array)
    assert encode(got) == encode(frame)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_and_nothing_else_happens(data):
    with pytest.raises(WireError):
        decode(data)


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_garbage_behind_a_right_prefix_is_refused(data, length):
    with pytest.raises(WireError):
        decode(struct.pack("<4sHI", b"FVWR", VERSION, length) + data)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_frame_with_one_byte_changed_cut_or_added_is_refused_or_a_frame(data):
    raw = pack(REQUEST)
    place = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[place] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(changed), raw[:place], raw + b"\0"):
        try:
            got = unpack(bad, Request)
        except WireError:
            continue
        assert isinstance(got, Request)
        assert len(bad) == len(raw)


@pytest.mark.parametrize(
    "message",
    [REQUEST, Reply(**ANSWER, vector=np.array([1.0, np.inf])), Declined(**ANSWER, code="over-budget")],
)
def test_messages_survive_the_wire(message):
    got = unpack(pack(message), type(message))
    assert type(got) is type(message)
    for name in message.__slots__:
        np.testing.assert_array_equal(getattr(got, name), getattr(message, name))


def test_a_message_of_another_kind_is_refused():
    with pytest.raises(WireError, match="kind 'request'"):
        unpack(pack(REQUEST), Reply | Declined)


def changed_header(change):
    raw = pack(REQUEST)
    _, _, length = struct.unpack_from("<4sHI", raw)
    header = json.loads(raw[10 : 10 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<4sHI", b"FVWR", VERSION, len(text)) + text + raw[10 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["head"].update(round="3"),
        lambda h: h["head"].update(round=True),
        lambda h: h["head"].update(round=2**70),
        lambda h: h["head"].update(participants=["a", 1]),
        lambda h: h["head"].update(extra=1),
        lambda h: h["head"].pop("study"),
        lambda h: h["parts"][0].update(dtype="|O"),
        lambda h: h["parts"][0].update(dtype="<u8"),
        lambda h: h["parts"][0].update(shape=[2**62, 2**62]),
        lambda h: h["parts"][0].update(shape=[-5]),
        lambda h: h["parts"][0].update(shape=[5, 0]),
        lambda h: h["parts"][0].update(name="study"),
        lambda h: h["parts"].append(h["parts"][0]),
        lambda h: h.update(kind="reply"),
    ],
)
def test_wrong_fields_types_and_sizes_are_refused(change):
    with pytest.raises(WireError):
        unpack(changed_header(change), Request)


def test_deep_json_is_refused():
    text = b'{"kind":"x","parts":[],"head":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(WireError):
        decode(struct.pack("<4sHI", b"FVWR", VERSION, len(text)) + text)


def test_another_version_says_what_to_do():
    raw = bytearray(pack(REQUEST))
    raw[4] = VERSION + 1
    with pytest.raises(WireError, match="same fedveil version"):
        decode(bytes(raw))


def test_a_frame_over_the_limit_is_refused():
    with pytest.raises(WireError, match="are allowed"):
        decode(pack(REQUEST), limit=100)


def test_nothing_but_known_messages_is_packed():
    with pytest.raises(WireError):
        pack(object())
    with pytest.raises(WireError):
        encode(Frame("x", {}, {"a": np.array([object()])}))
    with pytest.raises(WireError):
        encode(Frame("x", {"a": float("nan")}))
