"""Linear layers over any number of positions, and embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.learning.gradients.contributions import Deferred, Kept
from fedveil.learning.gradients.gram import lost, matrix_norms
from fedveil.learning.gradients.parameters import Target
from fedveil.learning.gradients.rules.arithmetic import Cost, exact
from fedveil.learning.gradients.rules.products import record_weight
from fedveil.learning.gradients.tape import Tape, Unchanged
from fedveil.learning.gradients.units import Bucket

__all__ = ["embedding_rule", "linear", "linear_rule"]


def linear_rule(module: nn.Linear, tape: Tape, x: Tensor) -> Tensor:
    """`nn.Linear` on `(images, ..., features)`, or with several rows for each image."""
    tape.check_batch(module, x, folded=True)
    return linear(
        module, tape, x, module.weight, module.bias, tape.target(module.weight), tape.target(module.bias)
    )


def linear(
    module: nn.Module,
    tape: Tape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_target: Target | None,
    bias_target: Target | None,
) -> Tensor:
    """y = x W^T + b on the tape, for a layer `module` that may hold several such products.

    `x` is `(images, ..., features)`, or has several rows for each image: the caller has seen to that.
    """
    captured, use, images = Unchanged(module, x), tape.use(), tape.batch.images

    def received(gradient: Tensor) -> None:
        g = exact(gradient).reshape(images, -1, weight.shape[0])
        if bias_target is not None:
            tape.add(Kept(bias_target, use, 0, tape.batch.sum(g.sum(1))))
        if weight_target is not None:
            a = exact(captured.get()).reshape(images, -1, weight.shape[1])
            _record_matrix(tape, weight_target, use, a, g)

    y = functional.linear(x, weight.detach(), None if bias is None else bias.detach())
    return tape.watch(y, received)


def _record_matrix(tape: Tape, target: Target, use: int, a: Tensor, g: Tensor) -> None:
    """Gradients sum_p g_p a_p^T: `a` is `(images, positions, inputs)`, `g` `(images, positions, outputs)`."""
    (_, positions, inputs), outputs = a.shape, g.shape[2]

    def norms(bucket: Bucket) -> Tensor:
        return matrix_norms(bucket.rows(a).flatten(1, 2), bucket.rows(g).flatten(1, 2))

    def gradients(bucket: Bucket) -> Tensor:
        return torch.bmm(bucket.rows(g).flatten(1, 2).mT, bucket.rows(a).flatten(1, 2))

    def product(factors: Tensor, first: int) -> Tensor:
        weighted = g[:first] * factors[:, None, None]
        return weighted.flatten(0, 1).mT @ a[:first].flatten(0, 1)

    entries = inputs * outputs
    cost = Cost(
        positions=positions,
        channels=inputs + outputs,
        matrices=1,
        product=positions * entries,
        entries=entries,
    )
    record_weight(tape, target, use, cost, norms=norms, gradients=gradients, product=product)


def embedding_rule(module: nn.Embedding, tape: Tape, indices: Tensor) -> Tensor:
    """`nn.Embedding` on integer `(images, ...)`: a linear layer whose inputs are one-hot rows."""
    tape.check_batch(module, indices)
    rows, width = module.weight.shape
    target, use, batch = tape.target(module.weight), tape.use(), tape.batch

    def received(gradient: Tensor) -> None:
        index = indices.reshape(batch.images, -1)
        g = exact(gradient).reshape(batch.images, -1, width)
        if module.padding_idx is not None:
            g = g * (index != module.padding_idx)[..., None]

        def norms(bucket: Bucket) -> Tensor:
            i, y = bucket.rows(index).flatten(1), bucket.rows(g).flatten(1, 2)
            same_row = i[:, :, None] == i[:, None, :]
            norms = (torch.bmm(y, y.mT) * same_row).sum((1, 2))
            return norms + lost(torch.ones_like(i, dtype=y.dtype), y, i.shape[1] + width)

        def gradients(bucket: Bucket) -> Tensor:
            i, y = bucket.rows(index).flatten(1), bucket.rows(g).flatten(1, 2)
            zeros = y.new_zeros(bucket.units, rows, width)
            return zeros.scatter_add_(1, i[..., None].expand(-1, -1, width), y)

        def product(factors: Tensor) -> Tensor:
            weighted = g * batch.repeat(factors)[:, None, None]
            return g.new_zeros(rows, width).index_add_(0, index.flatten(), weighted.flatten(0, 1))

        if target is not None:
            tape.add(
                Deferred(
                    target,
                    use,
                    batch.units,
                    norms=lambda: torch.cat([norms(bucket) for bucket in batch.buckets]),
                    gradients=lambda: torch.cat([gradients(bucket) for bucket in batch.buckets]),
                    product=product,
                )
            )

    return tape.watch(functional.embedding(indices, module.weight.detach(), module.padding_idx), received)
