"""The size that a compressed image states, independent of the file around it: a few bytes may claim gigabytes."""

__all__ = ["stated_size"]

JPEG, JPEG_2000, BOX = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
NOT_FRAMES = {0xC4, 0xC8, 0xCC}
"""Markers in the range of frames (ITU T.81, table B.1) that do not begin a frame."""
JPEG_LS_FRAME = 0xF7


def stated_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in the codestream's own header, for JPEG, JPEG-LS and JPEG 2000; None if absent.

    >>> stated_size(bytes.fromhex("ffd8 ffc0 000b 08 0010 0020 01 011100"))
    (32, 16)
    """
    if content.startswith(BOX):
        content = content[max(content.find(JPEG_2000), 0) :]
    if content.startswith(JPEG_2000):
        right, down, left, up = (int.from_bytes(content[at : at + 4]) for at in (8, 12, 16, 20))
        return max(right - left, 0), max(down - up, 0)
    return _jpeg_size(content) if content.startswith(JPEG) else None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES) or marker == JPEG_LS_FRAME:
            return int.from_bytes(content[at + 7 : at + 9]), int.from_bytes(content[at + 5 : at + 7])
        at += 2 + max(int.from_bytes(content[at + 2 : at + 4]), 2)
    return None
