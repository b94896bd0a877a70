"""Handling of batch norm, which mixes patients: replace it by group norm, or fix its public statistics."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.errors import InvalidValue
from fedveil.learning.networks.layers import FixedBatchNorm1d, FixedBatchNorm2d, FixedBatchNorm3d

__all__ = ["fix_batch_norm", "group_count", "replace_batch_norm"]

_FORWARD = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
"""What normalises and does nothing else."""


def group_count(channels: int) -> int:
    """Groups for group norm: 16, or the largest number below it that divides the channels."""
    return next(groups for groups in range(min(16, channels), 0, -1) if channels % groups == 0)


def replace_batch_norm(model: nn.Module) -> nn.Module:
    """Put group norm (Wu & He, arXiv 1803.08494) in the place of every batch norm, scale and shift kept.

    The model is changed in place and returned (a model that *is* a batch norm comes back as the replacement).
    Weights trained with batch norm lose accuracy until they have been trained a little with group norm.
    """
    return _replace(model, _group_norm)


def fix_batch_norm(model: nn.Module) -> nn.Module:
    """Make every batch norm use its stored statistics for good: for weights that were trained on public images.

    The model is changed in place and returned. The statistics are then public constants; they no longer follow
    the images. Scale and shift stay trainable where they are.
    """
    return _replace(model, _fixed)


def _replace(module: nn.Module, build: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return _followed(build(module), module)
    for name, child in module.named_children():
        replacement = _replace(child, build)
        if replacement is not child:
            setattr(module, name, replacement)
    return module


def _followed(replacement: nn.Module, norm: _BatchNorm) -> nn.Module:
    """The replacement, followed by what a batch norm of another library does after normalising.

    timm's has an activation of its own: modules `drop` and `act`, in this order.
    """
    own = dict(norm.named_children())
    if type(norm).forward in _FORWARD and not own:
        return replacement
    if own.keys() != {"drop", "act"}:
        raise InvalidValue(
            f"the network has a {type(norm).__name__}, which does more than batch norm does",
            "only what it normalises can be replaced",
            "put another layer in its place yourself",
        )
    return nn.Sequential(replacement, own["drop"], own["act"])


def _group_norm(norm: _BatchNorm) -> nn.Module:
    channels = norm.num_features
    replacement = nn.GroupNorm(group_count(channels), channels, eps=norm.eps, affine=norm.affine)
    return _with_affine(replacement, norm)


def _fixed(norm: _BatchNorm) -> nn.Module:
    kinds = {
        nn.BatchNorm1d: FixedBatchNorm1d,
        nn.BatchNorm2d: FixedBatchNorm2d,
        nn.BatchNorm3d: FixedBatchNorm3d,
    }
    kind = next((fixed for plain, fixed in kinds.items() if isinstance(norm, plain)), FixedBatchNorm2d)
    replacement = kind(norm.num_features, eps=norm.eps, affine=norm.affine)
    for name, buffer in norm.named_buffers():
        setattr(replacement, name, buffer)
    return _with_affine(replacement.eval(), norm)


def _with_affine(replacement: nn.Module, norm: _BatchNorm) -> nn.Module:
    """Take over scale and shift, with their device, dtype and whether they are trained."""
    if norm.affine:
        replacement.weight, replacement.bias = norm.weight, norm.bias
    return replacement
