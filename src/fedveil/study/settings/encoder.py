"""The [model.encoder] table of a study file: an encoder that is not built in."""

from typing import Annotated, Literal, Self

from pydantic import Field

from fedveil.learning.encoders import EncoderSpec, is_external
from fedveil.study.settings.data import Table

__all__ = ["EncoderSettings"]

Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Whole = Annotated[tuple[int, ...], Field(strict=False)]


class EncoderSettings(Table):
    """An encoder that is not built in: what its file leaves open, and its hash, which is filled in."""

    weights: str = Field(
        default="",
        description="safetensors file of the weights of timm:NAME; default: timm's cache, never a download",
    )
    input_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="pixels along each side that it takes; default as in its file",
    )
    input_channels: Literal[1, 3] | None = Field(
        default=None, description="channels that it takes; default as in its file; grey images are repeated"
    )
    mean: Numbers | None = Field(
        default=None, description="subtracted from images in [0, 1]; default timm's, or those of ImageNet"
    )
    std: Numbers | None = Field(
        default=None, description="what the difference is divided by; default likewise"
    )
    pooling: Literal["class", "mean", "mean-deviation"] | None = Field(
        default=None, description="of tokens or maps: class token, mean, or mean and deviation (default)"
    )
    layer: int | None = Field(
        default=None, ge=0, le=1000, description="block of timm:NAME whose output is taken; default the last"
    )
    prefix: int | None = Field(
        default=None, ge=0, le=100, description="tokens before those of patches; default timm's, or 1"
    )
    output: str | None = Field(
        default=None, max_length=200, description="output of the graph; default the first"
    )
    sha256: str = Field(
        default="",
        pattern="^([0-9a-f]{64})?$",
        description="of the encoder's file, filled in when a study begins",
    )
    graph: str = Field(
        default="",
        pattern="^([0-9a-f]{64})?$",
        description="hash of the structure of timm:NAME, filled in likewise",
    )
    lengths: Whole = Field(default=(), description="lengths of the parts of its features, filled in likewise")

    def spec(self, features: str) -> EncoderSpec | None:
        """The encoder that ``features`` names; None for built-in ones."""
        if not is_external(features):
            return None
        kind, _, name = features.partition(":")
        return EncoderSpec.from_dict({"kind": kind, "name": name, **self.model_dump(exclude={"weights"})})

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        """The table of a pinned encoder."""
        return cls.model_validate({k: v for k, v in spec.to_dict().items() if k not in ("kind", "name")})
