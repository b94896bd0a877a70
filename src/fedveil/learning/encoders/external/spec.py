"""What identifies an encoder that is not built in, and how images are prepared and pooled for it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from fedveil.errors import InvalidValue

__all__ = ["KINDS", "POOLINGS", "EncoderSpec", "Kind", "Pooling", "is_external"]

Kind = Literal["timm", "onnx", "exported"]
Pooling = Literal["class", "mean", "mean-deviation"]
KINDS: tuple[str, ...] = get_args(Kind)
POOLINGS: tuple[str, ...] = get_args(Pooling)
LONGEST = 100_000
"""Largest number of features."""
LARGEST_SIDE = 1024
_HASH = re.compile(r"[0-9a-f]{64}")


def is_external(features: str) -> bool:
    """Whether a study's features name an encoder that is not built in.

    >>> is_external("onnx:rad-dino.onnx"), is_external("pixels@8")
    (True, False)
    """
    return features.partition(":")[0] in KINDS and ":" in features


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """An encoder as a study states it; None where the file or the kind decides, which `register` fills in.

    Attributes:
        kind: what runs it.
        name: of the network in timm; or the file's own name, for people.
        sha256: of the file: the weights of a timm network, or weights and graph of the others.
        graph: SHA-256 of a timm network's structure, with the version of timm; empty for the others.
        input_size: pixels along each side of its input.
        input_channels: of its input, 1 or 3; grey images are repeated three times.
        mean: subtracted from images in [0, 1], one number per channel.
        std: what the difference is divided by.
        pooling: of patch tokens or maps; a vector is taken as it is.
        layer: block of a timm network whose output is pooled; the last if None.
        prefix: tokens before those of patches, the class token first.
        output: name of the graph's output; the first if None.
        lengths: of the vector's parts.
    """

    kind: Kind
    name: str
    sha256: str = ""
    graph: str = ""
    input_size: int | None = None
    input_channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pooling: Pooling | None = None
    layer: int | None = None
    prefix: int | None = None
    output: str | None = None
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key, value in (("sha256", self.sha256), ("graph", self.graph)):
            if value and not _HASH.fullmatch(value):
                raise InvalidValue(
                    f"{key} is {value[:80]!r}", "it must be 64 hexadecimal digits", "remove it"
                )
        if self.input_size is not None and not 8 <= self.input_size <= LARGEST_SIDE:
            raise InvalidValue(
                f"the encoder's size is {self.input_size}",
                f"it must lie in [8, {LARGEST_SIDE}]",
                "set model.encoder.input_size to the pixels that it takes along each side",
            )
        if self.input_channels not in (None, 1, 3):
            raise InvalidValue(
                f"the encoder takes {self.input_channels} channels",
                "it must take 1 (grey) or 3 (colour)",
                "choose another encoder",
            )
        self._check_scaling()
        if self.lengths and not (min(self.lengths) >= 1 and sum(self.lengths) <= LONGEST):
            raise InvalidValue(
                f"the encoder's features have the lengths {self.lengths}",
                f"there must be 1 to {LONGEST:,} in total",
                "pool its output",
            )

    def _check_scaling(self) -> None:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (
                len(values) not in (1, 3)
                or any(not 1e-6 <= abs(v) <= 1e6 for v in values if v or key == "std")
            ):
                raise InvalidValue(
                    f"model.encoder.{key} is {list(values)}",
                    "it must hold one finite number for all channels or one per channel, and no std of 0",
                    "give the constants that the encoder was trained with, for images in [0, 1]",
                )

    @property
    def is_pinned(self) -> bool:
        """Whether every hospital would compute the same from it: hash and lengths are known."""
        return bool(self.sha256 and self.lengths and (self.graph or self.kind != "timm"))

    @property
    def features(self) -> str:
        """As in a study file, such as ``"onnx:rad-dino.onnx"``."""
        return f"{self.kind}:{self.name}"

    @property
    def dimension(self) -> int:
        """Number of features."""
        return sum(self.lengths)

    def pinned_to(self, graph: str) -> Self:
        """With the hash of its structure."""
        return replace(self, graph=graph)

    def with_defaults(self, **found: Any) -> Self:
        """What was found in the file, where the spec leaves it open."""
        return replace(
            self, **{key: value for key, value in found.items() if getattr(self, key) in (None, ())}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what is not set."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value not in (None, "", ())
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        known = {one.name for one in fields(cls)}
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        return cls(**plain)
