"""Feature extractors: fixed, public functions from an image to a vector, and its public scaling.

``feature_extractor("efficientnet-lite0@96+scattering", image_size=64, channels=1)`` builds any of them from
the name in a study file: ``+`` concatenates extractors, ``@SIZE`` sets the resolution of one. `Whitened` removes
from their features the mean and main directions of synthetic images. Encoders that are not built in are in `external`.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.learning.encoders.external.spec import EncoderSpec, is_external
    from fedveil.learning.encoders.extractor import Concatenation, FeatureExtractor, failures
    from fedveil.learning.encoders.precomputed import PRECOMPUTED, Precomputed
    from fedveil.learning.encoders.registry import EXTRACTORS, feature_extractor
    from fedveil.learning.encoders.whitened import Whitened

__all__ = [
    "EXTRACTORS",
    "PRECOMPUTED",
    "Concatenation",
    "EncoderSpec",
    "FeatureExtractor",
    "Precomputed",
    "Whitened",
    "failures",
    "feature_extractor",
    "is_external",
]

__getattr__, __dir__ = on_first_use(__name__)
