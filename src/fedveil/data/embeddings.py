"""Embeddings in place of images: one vector an image, from an encoder that its owner has run already."""

from hashlib import blake2b
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.data.image_store import DIGEST_BYTES, ImageStack, Indices, Pixels
from fedveil.data.options import Reading
from fedveil.errors import DataError

__all__ = ["ODD", "Embeddings", "as_vectors", "odd_vectors"]

LARGEST = 1e6
"""Larger numbers mean a broken encoder; the bound keeps every product far from overflow."""
ODD = (
    "it holds NaN, infinity or numbers beyond 1e6",
    "every coordinate must be a finite number",
    "leave that row out, or compute it again",
)
"""What is wrong with a vector that `odd_vectors` names: found, rule, remedy."""


@final
class Embeddings(ImageStack):
    """Vectors (n, d), float32, where other data sets hold images; there are no pixels to read.

    The encoder must be public, as one that was trained on other people's images is: what it was trained on is not
    covered by any guarantee here. Each vector is used by itself, scaled to length 1 by its own length.
    """

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        self._vectors = as_vectors(vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def channels(self) -> int:
        """1: there is no colour to bring to a study's channels."""
        return 1

    @property
    def size(self) -> int:
        """1: there are no pixels."""
        return 1

    @property
    def reading(self) -> Reading:
        """The default one: there are no pixels that it would matter for."""
        return Reading()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    def vectors(self, indices: Indices) -> npt.NDArray[np.float32]:
        """The vectors asked for, (k, d), in that order."""
        return self._vectors[np.asarray(indices, dtype=np.int64)]

    def read(self, indices: Indices) -> Pixels:
        """Refused."""
        del indices
        raise DataError(
            "this data holds embeddings, and pixels were asked for",
            "they were computed from images that are not here",
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
        """These vectors only, in that order."""
        return Embeddings(self.vectors(indices))


def as_vectors(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Embeddings (n, d) as float32, each finite and at most 1e6 in every coordinate.

    Raises:
        DataError: another shape or type, or a vector that is none; the first such row is named.
    """
    odd = odd_vectors(values)
    if len(odd):
        found, rule, remedy = ODD
        raise DataError(f"embedding {odd[0]}: {found}", rule, remedy)
    return np.ascontiguousarray(values, dtype=np.float32)


def odd_vectors(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rows that cannot be used, each judged by itself.

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
