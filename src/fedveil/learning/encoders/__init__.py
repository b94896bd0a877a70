"""Feature extractors: fixed, public functions from an image to a vector, and its public scaling.

``feature_extractor("efficientnet-lite0@96+scattering", image_size=64, channels=1)`` builds any of them from
the name in a study file: ``+`` puts extractors side by side, ``@SIZE`` sets the resolution that one sees. `Whitened`
takes out of their features what synthetic images show already.
"""

from fedveil.learning.encoders.extractor import Concatenation, FeatureExtractor
from fedveil.learning.encoders.precomputed import PRECOMPUTED, Precomputed
from fedveil.learning.encoders.registry import EXTRACTORS, feature_extractor
from fedveil.learning.encoders.whitened import Whitened

__all__ = [
    "EXTRACTORS",
    "PRECOMPUTED",
    "Concatenation",
    "FeatureExtractor",
    "Precomputed",
    "Whitened",
    "feature_extractor",
]
