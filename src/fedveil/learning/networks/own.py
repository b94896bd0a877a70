"""A network of one's own: `module:package.function`, imported and called on this machine.

Whoever names a function has code run. So a name comes from a study file or model folder that the user of this machine
gives, never from an offer: see `fedveil.deploy.offer`.
"""

import importlib
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedveil.errors import InvalidValue

__all__ = ["is_own", "own_network"]

_PREFIX = "module:"
_ASKED = ("classes", "channels", "image_size")


def is_own(name: str) -> bool:
    """Whether a network is named by a function.

    >>> is_own("module:clinic.networks.small"), is_own("cnn")
    (True, False)
    """
    return name.startswith(_PREFIX)


def own_network(name: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """What ``function(classes=..., channels=..., image_size=...)`` returns, `name` being "module:package.function".

    Nothing is replaced in it. Parameters that require a gradient are trained.

    Raises:
        InvalidValue: the function cannot be imported, takes other arguments, or returns no suitable module.
    """
    function = _function(name)
    try:
        model = function(classes=classes, channels=channels, image_size=image_size)
    except Exception as error:  # whatever a user's function raises
        raise InvalidValue(
            f"network is {name}",
            f"its function raised {type(error).__name__} for {classes} classes, {channels} channels and images of "
            f"{image_size} pixels ({error})",
            "correct the function",
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidValue(
            f"network is {name}",
            f"its function returned a {type(model).__name__}, which is no torch.nn.Module",
            "return the network that takes images (k, channels, size, size) in [0, 1] to logits (k, classes)",
        )
    held = {id(x): x for x in (*model.parameters(), *model.buffers()) if x.numel()}
    places = Counter(x.untyped_storage().data_ptr() for x in held.values())
    if any(p.requires_grad and places[p.untyped_storage().data_ptr()] > 1 for p in model.parameters()):
        raise InvalidValue(
            f"network is {name}",
            "a trained parameter shares memory with another parameter or buffer, which training would change too",
            "give each a tensor of its own, such as a clone",
        )
    others = {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}
    if others:
        raise InvalidValue(
            f"network is {name}",
            f"it has parameters of {', '.join(sorted(others))}",
            "return model.float(): networks are trained in single precision",
        )
    return model


def _function(name: str) -> Callable[..., Any]:
    """The named function; only one that takes the three arguments is ever called."""
    where, _, called = name.removeprefix(_PREFIX).rpartition(".")
    try:
        module = importlib.import_module(where)
    except Exception as error:  # whatever a user's package raises
        raise InvalidValue(
            f"network is {name}",
            f"{where} cannot be imported here ({type(error).__name__}: {error})",
            "install the package that holds it, or put its folder on PYTHONPATH; prediction needs the same function",
        ) from error
    function: Callable[..., Any] | None = getattr(module, called, None)
    if function is None or not callable(function):
        raise InvalidValue(
            f"network is {name}",
            f"{where} has no function {called}",
            "give the function's full name; prediction needs the same function as training",
        )
    try:
        known = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        known = set()
    if not known.issuperset(_ASKED):
        raise InvalidValue(
            f"network is {name}",
            f"{called} does not name the arguments {', '.join(_ASKED)}",
            f"define it as def {called}(*, classes, channels, image_size)",
        )
    return function
