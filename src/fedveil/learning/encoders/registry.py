"""From the name in a study file to a feature extractor."""

import re
from collections.abc import Callable

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Precision
from fedveil.learning.encoders.external.spec import EncoderSpec, is_external
from fedveil.learning.encoders.extractor import Concatenation, FeatureExtractor
from fedveil.learning.encoders.precomputed import PRECOMPUTED, Precomputed
from fedveil.learning.encoders.slices import PooledSlices
from fedveil.learning.encoders.whitened import Whitened

LARGEST = 1024
CHANNELS = (1, 3)
SMALLEST_SCATTERED = 8
SMALLEST_OF_THREE_OCTAVES = 48


def _efficientnet(
    name: str, channels: int, image_size: int, size: int | None, block: int | None, precision: Precision
) -> FeatureExtractor:
    from fedveil.learning.encoders.efficientnet_lite import SMALLEST, EfficientNetLite

    variant = int(re.split("[@/]", name)[0][-1])
    return EfficientNetLite(
        name, channels, _at_least(SMALLEST, size or image_size, name), variant, block, precision
    )


def _pixels(
    name: str, channels: int, image_size: int, size: int | None, block: int | None, precision: Precision
) -> FeatureExtractor:
    from fedveil.learning.encoders.pixels import Pixels

    del precision
    _no_block(name, block)
    return Pixels(name, channels, size or min(image_size, Pixels.default_size))


def _scattering(
    name: str, channels: int, image_size: int, size: int | None, block: int | None, precision: Precision
) -> FeatureExtractor:
    from fedveil.learning.encoders.scattering import Scattering

    del precision
    _no_block(name, block)
    side = _at_least(SMALLEST_SCATTERED, size or image_size, name)
    return Scattering(name, channels, side, scales=2 if side < SMALLEST_OF_THREE_OCTAVES else 3)


Builder = Callable[[str, int, int, int | None, int | None, Precision], FeatureExtractor]
EXTRACTORS: dict[str, Builder] = {
    "efficientnet-lite0": _efficientnet,
    "efficientnet-lite1": _efficientnet,
    "efficientnet-lite2": _efficientnet,
    "pixels": _pixels,
    "scattering": _scattering,
}
"""Builders by name: (name as written, channels, size of the images, size asked for, block asked for, precision)."""

_PART = re.compile(r"(?P<base>[a-z0-9-]+)(?:@(?P<size>[0-9]{1,4}))?(?:/(?P<block>[0-9]{1,2}))?")


def feature_extractor(
    name: str,
    image_size: int,
    channels: int,
    *,
    whitened: bool = False,
    dimension: int | None = None,
    encoder: EncoderSpec | None = None,
    precision: Precision = "float32",
    slices: int | None = None,
) -> FeatureExtractor:
    """Build the extractor that a study file names.

    Args:
        name: extractors joined by ``+``, each with an optional resolution ``@SIZE`` in pixels and, for
            efficientnet, ``/BLOCK``; or "precomputed"; or an encoder that is not built in, such as "onnx:FILE".
        image_size: pixels per side of its input images.
        channels: 1 for grey images, 3 for colour.
        whitened: whether features are centred and whitened with synthetic images, see `Whitened`.
        dimension: length of precomputed features.
        precision: of networks; scattering and pixels are always computed in float32.
        slices: of volumes, which are grey; None for images.
        encoder: what an encoder that is not built in is, as `register` pinned it.

    Raises:
        InvalidValue: an unknown name, a size out of range, or another number of channels.

    >>> feature_extractor("pixels@8+pixels@4", image_size=64, channels=1).blocks
    (64, 16)
    """
    if name == PRECOMPUTED:
        return Precomputed.of(dimension)
    if channels not in CHANNELS:
        raise InvalidValue(
            f"images have {channels} channels", "extractors take 1 (grey) or 3 (colour)", "convert the images"
        )
    if not 1 <= image_size <= LARGEST:
        raise InvalidValue(
            f"image_size is {image_size}", f"it must lie in [1, {LARGEST}]", "give the side in pixels"
        )
    plain = (
        _external(name, channels, encoder, precision)
        if is_external(name)
        else _built_in(name, channels, image_size, precision)
    )
    if slices is not None:
        plain = PooledSlices(plain, slices)
    return Whitened(plain, image_size, channels, slices) if whitened else plain


def _built_in(name: str, channels: int, image_size: int, precision: Precision) -> FeatureExtractor:
    parts = tuple(_part(text, image_size, channels, precision) for text in name.split("+"))
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def _external(
    name: str, channels: int, encoder: EncoderSpec | None, precision: Precision
) -> FeatureExtractor:
    from fedveil.learning.encoders.external import External

    if encoder is None:
        kind, _, file = name.partition(":")
        encoder = EncoderSpec(kind=kind, name=file)  # type: ignore[arg-type]
    return External(encoder, channels, precision)


def _no_block(name: str, block: int | None) -> None:
    if block is not None:
        raise InvalidValue(
            f"features are {name!r}", "only efficientnet has blocks", "remove what follows the /"
        )


def _part(text: str, image_size: int, channels: int, precision: Precision) -> FeatureExtractor:
    match = _PART.fullmatch(text)
    if match is None or match["base"] not in EXTRACTORS:
        known = ", ".join(sorted(EXTRACTORS))
        raise InvalidValue(
            f"features are {text!r}", f"known extractors are {known}", "give one, or several joined by +"
        )
    size = None if match["size"] is None else int(match["size"])
    if size is not None and not 1 <= size <= LARGEST:
        raise InvalidValue(
            f"the resolution in {text!r} is {size}", f"it must lie in [1, {LARGEST}]", "reduce it"
        )
    block = None if match["block"] is None else int(match["block"])
    return EXTRACTORS[match["base"]](text, channels, image_size, size, block, precision)


def _at_least(smallest: int, size: int, name: str) -> int:
    if size < smallest:
        raise InvalidValue(
            f"{name} would see images of {size} pixels",
            f"it needs at least {smallest}",
            f"write {re.split('[@/]', name)[0]}@{smallest} or more to have them enlarged",
        )
    return size
