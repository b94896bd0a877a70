"""Multi-head attention (`nn.MultiheadAttention`): four linear layers around a product without parameters."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.contributions import Kept
from fedveil.learning.gradients.rules.affine import linear
from fedveil.learning.gradients.rules.arithmetic import exact
from fedveil.learning.gradients.tape import Tape

__all__ = ["attention_rule"]


def attention_rule(
    module: nn.MultiheadAttention,
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass of `nn.MultiheadAttention` with `batch_first=True` on `(images, tokens, features)`."""
    q, k, v = _projections(module, tape, query, key, value)
    for extra, tokens in ((module.bias_k, "k"), (module.bias_v, "v")):
        if extra is not None:
            token = _one_for_each_image(tape, extra)
            k, v = (torch.cat([k, token], 1), v) if tokens == "k" else (k, torch.cat([v, token], 1))
    if module.add_zero_attn:
        k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
    images, length, heads = len(q), q.shape[1], module.num_heads
    q, k, v = (x.reshape(images, x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
    mask = _mask(q, k, key.shape[1], key_padding_mask, attn_mask, is_causal)
    dropout = module.dropout if module.training else 0.0
    if need_weights:
        scores = q @ k.mT * q.shape[3] ** -0.5
        weights = functional.dropout(
            torch.softmax(scores if mask is None else scores + mask, dim=-1), dropout
        )
        mixed = weights @ v
    else:
        weights = None
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
    mixed = mixed.transpose(1, 2).reshape(images, length, module.embed_dim)
    out = module.out_proj
    y = linear(module, tape, mixed, out.weight, out.bias, tape.target(out.weight), tape.target(out.bias))
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    return y, weights


def _projections(module: nn.MultiheadAttention, tape: Tape, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, each `(images, tokens, embed_dim)`."""
    for x in inputs:
        if x.ndim != 3:
            raise InvalidValue(
                f"multi-head attention received a tensor of shape {tuple(x.shape)}",
                "it must be (images, tokens, features)",
                "give a batch, even of one image",
            )
        tape.check_batch(module, x)
    width = module.embed_dim
    bias, bias_target = module.in_proj_bias, tape.target(module.in_proj_bias)
    if module._qkv_same_embed_dim and inputs[0] is inputs[1] is inputs[2]:
        weight = module.in_proj_weight
        y = linear(module, tape, inputs[0], weight, bias, tape.target(weight), bias_target)
        return y.chunk(3, dim=2)
    projected: list[Tensor] = []
    for i, (x, name) in enumerate(zip(inputs, ("q", "k", "v"), strict=True)):
        first, last = i * width, (i + 1) * width
        if module._qkv_same_embed_dim:
            whole = tape.target(module.in_proj_weight)
            part_of: Tensor = module.in_proj_weight[first:last]
            target = None if whole is None else whole.rows(first, last)
        else:
            part_of = getattr(module, f"{name}_proj_weight")
            target = tape.target(part_of)
        part = None if bias is None else bias[first:last]
        part_target = None if bias_target is None else bias_target.rows(first, last)
        projected.append(linear(module, tape, x, part_of, part, target, part_target))
    return tuple(projected)


def _one_for_each_image(tape: Tape, parameter: Tensor) -> Tensor:
    """A learned token `(1, 1, features)`, repeated for each image, whose gradients are recorded."""
    target, use = tape.target(parameter), tape.use()
    repeated = parameter.detach().repeat(tape.batch.images, 1, 1)

    def received(gradient: Tensor) -> None:
        if target is not None:
            tape.add(Kept(target, use, 0, tape.batch.sum(exact(gradient))))

    return tape.watch(repeated, received)


def _mask(
    q: Tensor,
    k: Tensor,
    keys: int,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Tensor | None:
    """What is added to attention scores `(images, heads, queries, keys)`; learned and zero keys are never masked."""
    (images, heads, queries), extra = q.shape[:3], k.shape[2] - keys
    total: Tensor | None = None
    if attn_mask is None and is_causal:
        attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1)
    for mask, is_padding in ((attn_mask, False), (key_padding_mask, True)):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
        if is_padding:
            mask = mask[:, None, None, :]
        elif mask.ndim == 3:
            mask = mask.view(images, heads, queries, keys)
        mask = functional.pad(mask.to(q.dtype), (0, extra))
        total = mask if total is None else total + mask
    return total
