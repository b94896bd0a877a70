"""What a network of one's own computes of made-up images: saved with the model, and compared where it is loaded.

The function that builds it may have changed since, and names, shapes and norms of what is not trained do not tell.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from fedveil.learning.padded_batches import InMemory

if TYPE_CHECKING:
    from fedveil.learning import ClassHead, FindingsHead, NetworkModel

    Model = ClassHead | FindingsHead | NetworkModel

__all__ = ["as_saved", "shown"]

Vector = npt.NDArray[np.float64]
IMAGES = 4
TOLERANCE = 1e-3
"""Of the largest logit: what rounding on another machine may make."""


def shown(model: "Model", parameters: Vector) -> dict[str, Vector]:
    """What a saved model holds of its outputs; nothing where no function of the user's builds it."""
    return {"outputs": _logits(model, parameters)} if _is_own(model) else {}


def as_saved(model: "Model", parameters: Vector, saved: Any) -> bool:
    """Whether a network of one's own computes what it did when it was saved; other models do."""
    if not _is_own(model):
        return True
    try:
        before, now = np.array(saved, dtype=np.float64), _logits(model, parameters)
    except Exception:  # noqa: BLE001 - whatever the file holds, or a changed function raises
        return False
    allowed = TOLERANCE * np.abs(np.nan_to_num(before)).max(initial=0.0)
    return before.shape == now.shape and np.allclose(now, before, rtol=0, atol=allowed, equal_nan=True)


def _is_own(model: "Model") -> TypeGuard["NetworkModel"]:
    return getattr(model, "name", "").startswith("module:")


def _logits(model: "NetworkModel", parameters: Vector) -> Vector:
    """Logits (IMAGES, classes) of made-up images; nan where they are not finite."""
    from fedveil.learning.networks import made_up  # here, since linear heads do without torch

    images = model.before(made_up(IMAGES, model.image_shape))
    logits = model.logits(parameters, InMemory(images), IMAGES)
    return np.where(np.isfinite(logits), logits, np.nan)
