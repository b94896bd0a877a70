"""The [model] table of a study file."""

from pydantic import Field

from fedveil.study.settings.data import Table
from fedveil.study.settings.encoder import EncoderSettings

__all__ = ["NETWORK", "ModelSettings"]

NETWORK = (
    r"^(linear|cnn|cnn3d|resnet18|densenet121|efficientnet-lite0(@[0-9]{2,3})?"
    r"|timm:[\w./-]{1,80}(@scratch)?|module:[A-Za-z_][A-Za-z0-9_.]{0,120}\.[A-Za-z_][A-Za-z0-9_]{0,60})$"
)
"""What names of networks look like."""


class ModelSettings(Table):
    """The classifier: a linear head on frozen public features, or a whole network."""

    features: str = Field(
        default="efficientnet-lite0",
        description='"efficientnet-lite0" to "-lite2", "scattering", "pixels", joined by "+", with @SIZE; "timm:NAME", '
        '"onnx:FILE", "exported:FILE"; "precomputed"; "none" for networks',
    )
    encoder: EncoderSettings = EncoderSettings()
    dimension: int | None = Field(
        default=None, ge=1, le=100_000, description="length of precomputed features; default as in the data"
    )
    whitened: bool = Field(
        default=True,
        description="centre and whiten features with statistics of synthetic images, at no privacy cost",
    )
    network: str = Field(
        default="linear",
        pattern=NETWORK,
        description='"linear"; on pixels "cnn", "resnet18", "densenet121", "efficientnet-lite0", "timm:...", '
        '"module:package.function", one of your own; on volumes "cnn3d"',
    )
    trained_blocks: int = Field(
        default=1, ge=0, le=11, description="number of tuned blocks of efficientnet-lite0, from the last"
    )
    trained: str = Field(
        default="all",
        pattern=r"^(all|norms|last:[0-9]{1,3}|lora:[1-9][0-9]{0,2})$",
        description='part of timm:NAME that is trained beside its classifier: "all", "last:N", "norms" or "lora:R"',
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="folder of a model trained on public images, such as a run: training is pulled towards it",
    )
    start_sha256: str = Field(
        default="",
        pattern="^([0-9a-f]{64})?$",
        description="hash of that model, filled in when a study begins",
    )
