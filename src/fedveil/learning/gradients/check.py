"""Reasons why a model cannot have private gradients, found before any budget is spent."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.parameters import trainable_parameters
from fedveil.learning.gradients.rules import Plan, plan_rules

__all__ = ["check_layers", "state_guard"]


def check_layers(model: nn.Module) -> Plan:
    """Refuse a model with a layer that mixes images or keeps state of them; return the rule of each layer.

    This looks at layers, not at what `forward` does with them: `check_private` also tries the model out.
    """
    for name, module in model.named_modules():
        label = f"layer {name or 'the network itself'} ({type(module).__name__})"
        _check_module(module, label)
    parameters = trainable_parameters(model)
    if not parameters:
        raise InvalidValue(
            "the network has no trainable parameters",
            "there must be something to train",
            "set requires_grad on the parameters of the layers to train",
        )
    for name, parameter in parameters.items():
        if is_lazy(parameter) or not parameter.is_floating_point():
            raise InvalidValue(
                f"parameter {name} is {'not initialised' if is_lazy(parameter) else 'not real'}",
                "private gradients need real parameters of known shape",
                "run a lazily built network once before training it; split complex parameters",
            )
    return plan_rules(model)


def _check_module(module: nn.Module, label: str) -> None:
    """Refuse one module."""
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        raise InvalidValue(
            f"{label} normalises over the batch",
            "it mixes patients, so that no bound on one patient's contribution holds",
            "replace it by group norm (replace_batch_norm(model)) or fix its statistics (fix_batch_norm(model))",
        )
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        raise InvalidValue(
            f"{label} keeps running statistics of the images",
            "statistics of private images would leave with the model, unclipped",
            "build it with track_running_stats=False",
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
        module.max_norm is not None or module.scale_grad_by_freq
    ):
        raise InvalidValue(
            f"{label} depends on the whole batch (max_norm or scale_grad_by_freq)",
            "each image must be treated independently",
            "build it without these options",
        )
    trained = any(p.requires_grad for p in module.parameters())
    if isinstance(module, nn.MultiheadAttention) and trained and not module.batch_first:
        raise InvalidValue(
            f"{label} takes the sequence before the batch",
            "the first axis must be the images, so that each gradient can be attributed to its patient",
            "build it with batch_first=True",
        )


@contextmanager
def state_guard(model: nn.Module) -> Iterator[None]:
    """Refuse, and undo, any change that running the model makes to its buffers.

    A buffer's statistics of images are neither clipped nor noised, and would leave with the model.
    """
    before = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in model.named_buffers()}
    yield
    changed = []
    for name, buffer in model.named_buffers():
        original, version, copy = before.get(name, (None, 0, None))
        if buffer is original and buffer._version == version:
            continue
        changed.append(name)
        if copy is not None and original is not None and copy.shape == buffer.shape:
            with torch.no_grad():
                buffer.copy_(copy)
    if changed:
        raise InvalidValue(
            f"the network changed its own state ({', '.join(changed)}) while it saw private images",
            "this state would leave unclipped and without noise",
            "replace the layers that keep running statistics",
        )
