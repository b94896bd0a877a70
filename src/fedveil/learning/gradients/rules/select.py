"""Which rule runs which module."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedveil.learning.gradients.rules import affine, attention, convolution, normalisation, standardised
from fedveil.learning.gradients.rules.fallback import registered_rule, unit_by_unit_rule
from fedveil.learning.gradients.tape import Rule
from fedveil.learning.networks.layers import ScaleShift, WeightStandardizedConv2d

__all__ = ["Plan", "plan_rules"]


@dataclass(frozen=True, slots=True)
class _Known:
    """A kind of layer, the methods whose code its rule stands for, and the parameters that the rule covers."""

    kind: type[nn.Module]
    rule: Callable[..., Any]
    methods: tuple[str, ...] = ()
    parameters: frozenset[str] = frozenset({"weight", "bias"})

    def covers(self, module: nn.Module) -> bool:
        """Whether the module runs exactly the code that the rule stands for."""
        return (
            isinstance(module, self.kind)
            and all(getattr(type(module), m) is getattr(self.kind, m) for m in ("forward", *self.methods))
            and not hasattr(module, "parametrizations")
            and not module._forward_pre_hooks
            and {name for name, p in module._parameters.items() if p is not None} <= self.parameters
            # A parametrised weight lies beside the parameters; attention without biases of keys has them there as None.
            and all(vars(module).get(name) is None for name in self.parameters)
            and "forward" not in vars(module)
        )


_ATTENTION = frozenset(
    {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"}
)
_KNOWN = (
    _Known(
        WeightStandardizedConv2d,
        standardised.standardised_convolution_rule,
        ("standardized", "_conv_forward"),
    ),
    *(
        _Known(kind, convolution.convolution_rule, ("_conv_forward",))
        for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    ),
    *(
        _Known(kind, convolution.transposed_convolution_rule, ("_output_padding",))
        for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    ),
    _Known(nn.Linear, affine.linear_rule),
    _Known(nn.Embedding, affine.embedding_rule),
    _Known(nn.GroupNorm, normalisation.group_norm_rule),
    _Known(nn.LayerNorm, normalisation.layer_norm_rule),
    _Known(nn.RMSNorm, normalisation.rms_norm_rule),
    *(
        _Known(kind, normalisation.instance_norm_rule, ("_check_input_dim",))
        for kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    ),
    *(
        _Known(kind, normalisation.fixed_batch_norm_rule)
        for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    ),
    _Known(ScaleShift, normalisation.scale_shift_rule, ("applied",)),
    _Known(nn.MultiheadAttention, attention.attention_rule, ("merge_masks",), _ATTENTION),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The rule of each module that holds trainable parameters, and what the user should know about it."""

    rules: dict[nn.Module, Rule]
    labels: dict[nn.Module, str]
    """The names of these modules in messages."""
    notices: tuple[str, ...]

    @property
    def cut(self) -> frozenset[nn.Module]:
        """Modules that run once for each unit, on its part of their arguments."""
        return frozenset(module for module, rule in self.rules.items() if rule is unit_by_unit_rule)


def plan_rules(model: nn.Module) -> Plan:
    """Find a rule for every module of `model` that holds trainable parameters itself."""
    rules: dict[nn.Module, Rule] = {}
    labels: dict[nn.Module, str] = {}
    notices = []
    for name, module, rule, notice in _walk(model, ""):
        rules[module] = rule
        labels[module] = f"layer {name or 'the network itself'} ({type(module).__name__})"
        if notice:
            notices.append(f"{labels[module]} {notice}")
    return Plan(rules, labels, tuple(notices))


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, Rule, str]]:
    """Modules to run by a rule, from the outside in; what a rule covers whole is not entered."""
    if not any(p.requires_grad for p in module.parameters()):
        return
    known = next((k for k in _KNOWN if k.covers(module)), None)
    if known is not None:
        yield name, module, known.rule, ""
    elif any(p.requires_grad for p in module.parameters(recurse=False)):
        sampler = registered_rule(module)
        if sampler is not None:
            yield name, module, sampler, "has no rule of its own and uses the sampler registered with Opacus"
        else:
            yield (
                name,
                module,
                unit_by_unit_rule,
                "has no rule of its own and runs once per patient, which is slow",
            )
    else:
        for child_name, child in module.named_children():
            yield from _walk(child, f"{name}.{child_name}" if name else child_name)
