"""Training of some parameters of a timm network: its last blocks, its norms, or low-rank adapters; and its head.

Noise grows with the number of trained parameters, so of a network with public weights few are trained (norms and
biases: Bu et al., arXiv 2210.00036; adapters: Yu et al., arXiv 2110.06500). What is not trained is public and the same
at every site; it is neither released nor priced.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedveil.errors import InvalidValue

__all__ = ["ALL", "PARTS", "Adapted", "train_part"]

ALL = "all"
PARTS = r"^(all|norms|last:[0-9]{1,3}|lora:[1-9][0-9]{0,2})$"
"""What `model.trained` may be."""
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _BatchNorm, _InstanceNorm)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter: y = W x + b + B A x (LoRA: Hu et al., arXiv 2106.09685).

    W and b stay as they are. A (rank, inputs) is random and B (outputs, rank) zero, so that at first the layer computes
    what it did.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the adapter's, added."""
        y: Tensor = self.layer(x) + self.up(self.down(x))
        return y


def train_part(model: nn.Module, trained: str, name: str) -> None:
    """Freeze all of a timm network but a part; its classifier is always trained.

    Args:
        model: of timm, its layers replaced as `timm_network` does. Changed in place.
        trained: "last:N", the last N of the layers as timm numbers them; "norms", scale and shift of every
            normalisation; "lora:R", adapters of rank R on every linear layer but the classifier.
        name: of the network, for messages.

    Raises:
        InvalidValue: the network has no such part.
    """
    allowed = {id(p) for p in model.parameters() if p.requires_grad}
    head = _classifier(model, name)
    kind, _, number = trained.partition(":")
    model.requires_grad_(False)
    if kind == "last":
        part = _last(model, int(number), name)
    elif kind == "norms":
        part = [p for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters()]
    else:
        part = _adapters(model, int(number), {id(p) for p in head})
        allowed |= {id(p) for p in part}
    if not part and trained != "last:0":
        raise InvalidValue(
            f"model.trained is {trained!r}",
            f"{name} has no such parameters",
            'set model.trained = "last:1", or "all"',
        )
    for parameter in [*part, *head]:
        parameter.requires_grad_(id(parameter) in allowed)


def _classifier(model: Any, name: str) -> list[nn.Parameter]:
    """The parameters behind the features, which no public weights exist for."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else ()
    modules = [found] if isinstance(found, nn.Module) else list(found)
    parameters = [p for module in modules for p in module.parameters()]
    if not parameters:
        raise InvalidValue(
            f"network is {name}",
            "timm does not say which of its layers is the classifier, which is always trained",
            'set model.trained = "all"',
        )
    return parameters


def _last(model: Any, count: int, name: str) -> list[nn.Parameter]:
    """The parameters of the last layers before the classifier, as timm numbers them for layer-wise rates."""
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        raise InvalidValue(
            f"network is {name}",
            "timm does not number its layers",
            'set model.trained = "norms", "lora:8" or "all"',
        )
    head = {id(p) for p in _classifier(model, name)}
    groups = group_parameters(model, model.group_matcher(coarse=False))
    parameters = dict(model.named_parameters())
    layers = [[parameters[one] for one in groups[number]] for number in sorted(groups)]
    layers = [layer for layer in layers if any(id(p) not in head for p in layer)]
    if count > len(layers):
        raise InvalidValue(
            f"model.trained is 'last:{count}'",
            f"{name} has {len(layers)} layers before its classifier",
            f'give at most as many, or "{ALL}"',
        )
    return [p for layer in layers[len(layers) - count :] for p in layer]


def _adapters(model: nn.Module, rank: int, head: Iterable[int]) -> list[nn.Parameter]:
    """Put an adapter on every linear layer but the classifier; return the adapters' parameters."""
    found: list[nn.Parameter] = []
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not {id(p) for p in layer.parameters()} & set(head):
                adapted = Adapted(layer, rank)
                setattr(parent, name, adapted)
                found += [*adapted.down.parameters(), *adapted.up.parameters()]
    return found
