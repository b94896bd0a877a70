"""Embeddings instead of images: one vector per image, from an encoder that its owner has already run."""

from hashlib import blake2b
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.data.image_store import DIGEST_BYTES, ImageStack, Indices, Pixels
from fedveil.data.options import Reading
from fedveil.errors import DataError

__all__ = ["ODD", "Embeddings", "as_vectors", "odd_vectors"]

LARGEST = 1e6
"""Larger numbers indicate a broken encoder; the bound prevents overflow."""
ODD = (
    "it holds NaN, infinity or numbers beyond 1e6",
    "every coordinate must be a finite number",
    "leave that row out, or compute it again",
)
"""The error for a vector that `odd_vectors` names: found, rule, remedy."""


@final
class Embeddings(ImageStack):
    """Vectors (n, d), float32, instead of images; there are no pixels to read.

    The encoder must be public, for example one trained on other people's images: no guarantee here covers its
    training data. Each vector is used independently, scaled to length 1 by its own length.
    """

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        self._vectors = as_vectors(vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def channels(self) -> int:
        """1: there is no colour to convert."""
        return 1

    @property
    def size(self) -> int:
        """1: there are no pixels."""
        return 1

    @property
    def reading(self) -> Reading:
        """The default one: there are no pixels that it could affect."""
        return Reading()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    def vectors(self, indices: Indices) -> npt.NDArray[np.float32]:
        """The requested vectors, (k, d), in that order."""
        return self._vectors[np.asarray(indices, dtype=np.int64)]

    def read(self, indices: Indices) -> Pixels:
        """Refused."""
        del indices
        raise DataError(
            "this data holds embeddings, and pixels were asked for",
            "embeddings have no pixels",
            'set model.features = "precomputed" in the study',
        )

    def digest(self, indices: Indices) -> list[str]:
        """Hashes of the vectors."""
        start = blake2b(f"fedveil-embeddings-1 {self.dimension} ".encode(), digest_size=DIGEST_BYTES)
        digests = []
        for row in self.vectors(indices):
            one = start.copy()
            one.update(row.astype("<f4").tobytes())
            digests.append(one.hexdigest())
        return digests

    def subset(self, indices: Indices) -> "Embeddings":
        """Only these vectors, in that order."""
        return Embeddings(self.vectors(indices))


def as_vectors(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Embeddings (n, d) as float32, each finite and at most 1e6 in every coordinate.

    Raises:
        DataError: another shape or type, or an invalid vector; the first such row is named.
    """
    odd = odd_vectors(values)
    if len(odd):
        found, rule, remedy = ODD
        raise DataError(f"embedding {odd[0]}: {found}", rule, remedy)
    return np.ascontiguousarray(values, dtype=np.float32)


def odd_vectors(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Unusable rows, each judged independently.

    Raises:
        DataError: the whole array has another shape or type.
    """
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiu":
        raise DataError(
            f"embeddings have the shape {values.shape} and the type {values.dtype}",
            "they must be numbers of the shape (n, d), one row for each image",
            "store one vector for each image",
        )
    return np.flatnonzero(~(np.abs(values) <= LARGEST).all(axis=1))
