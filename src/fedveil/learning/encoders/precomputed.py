"""Embeddings that were already computed, with an encoder that is not needed here."""

from dataclasses import dataclass
from typing import Self

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.extractor import Features

__all__ = ["PRECOMPUTED", "Precomputed"]

PRECOMPUTED = "precomputed"


@dataclass(frozen=True, slots=True)
class Precomputed:
    """Takes embeddings (k, dimension) where other extractors take images, and returns them as they are.

    They are one block: a learner scales each by its own length, independently of others.
    """

    dimension: int

    @classmethod
    def of(cls, dimension: int | None) -> Self:
        """Set the length.

        Raises:
            InvalidValue: the length is not given.
        """
        if dimension is None:
            raise InvalidValue(
                'features are "precomputed", and their length is not known',
                "it must be given if there is no data",
                "set model.dimension to the length of an embedding",
            )
        return cls(dimension)

    @property
    def name(self) -> str:
        """As in a study file."""
        return PRECOMPUTED

    @property
    def key(self) -> str:
        """Name with length."""
        return f"precomputed-1 {self.dimension}"

    @property
    def blocks(self) -> tuple[int, ...]:
        """One block."""
        return (self.dimension,)

    def __call__(self, images: Features) -> Features:
        """The embeddings, after checking their shape."""
        if images.ndim != 2 or images.shape[1] != self.dimension:
            raise InvalidValue(
                f"embeddings have shape {images.shape}",
                f"this model takes (k, {self.dimension})",
                "use the encoder that the training data was made with",
            )
        return images
