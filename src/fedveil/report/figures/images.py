"""Example images as data URIs, so that the page needs no other file."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedveil.report import formatting
from fedveil.report.records import Examples

__all__ = ["Example", "example_images"]


@dataclass(frozen=True, slots=True)
class Example:
    """One test image with the model's prediction."""

    source: str
    name: str
    label: str
    predicted: str
    probability: str
    right: bool


def example_images(examples: Examples | None) -> tuple[Example, ...]:
    """The examples, ready to be shown in their order."""
    if examples is None:
        return ()
    return tuple(
        Example(_data_uri(image), name, label, predicted, formatting.percent(probability), label == predicted)
        for image, name, label, predicted, probability in zip(
            examples.images,
            examples.names,
            examples.labels,
            examples.predicted,
            examples.probability,
            strict=True,
        )
    )


def _data_uri(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
