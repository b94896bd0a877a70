"""The sum over units of clipped gradients, from one backward pass.

The model runs once with detached parameters while a tape records what each layer saw; the backward pass
computes gradients with respect to activations only. Norms then come from what was recorded, with the cheaper method
per layer, and one weighted product per layer makes the sum (book-keeping: Bu et al., arXiv 2210.00038).
"""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.backward import unit_contributions
from fedveil.learning.gradients.check import check_layers, state_guard
from fedveil.learning.gradients.clipping import Clipping, check_clipping, clip_factors
from fedveil.learning.gradients.contributions import Contribution, Kept
from fedveil.learning.gradients.parameters import Layout, trainable_parameters
from fedveil.learning.gradients.rules import Plan
from fedveil.learning.gradients.rules.arithmetic import exact_products
from fedveil.learning.gradients.trial.calls import Calls
from fedveil.learning.gradients.trial.losses import check_loss
from fedveil.learning.gradients.trial.probe import Trial, try_out
from fedveil.learning.gradients.units import UnitBatch, micro_batches

__all__ = ["GradientSum", "Loss", "PrivateGradients", "Reduction"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""`loss(outputs, labels)`: one loss per image, shape `(images,)`."""

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True)
class GradientSum:
    """A sum of clipped contributions, and what it was made of.

    Only `vector` may leave a site, and only after noise for sensitivity `clip_norm` has been added. The rest is
    exact and private: for tests, and for baselines without privacy.
    """

    vector: Tensor
    """Sum over units of clipped gradients, `(dimension,)`, in the order of `flatten_parameters`."""
    units: int
    """Number of units in the batch."""
    norms: Tensor
    """L2 norm of each unit's gradient before clipping, `(units,)`, in ascending order of unit; NaN where the
    gradient was not finite and so contributed nothing."""
    losses: Tensor
    """Each unit's loss, reduced like its gradient, `(units,)`, in the same order."""


class PrivateGradients:
    """Computes sums of clipped gradients of a model.

    Adding or removing one unit with all its images changes `sum(...).vector` by at most `clip_norm` in L2 norm
    (to rounding: 1e-4 of it for a few hundred units), for any images: noise is calibrated to this bound. Norms are
    rounded up to satisfy it (`gram`), and neither autocast around the caller nor TF32 affects them. One sum over very
    many units is rounded to its own size in single precision: cut a cohort by `fedveil.learning.unit_batches` and add
    in double precision, as `fedveil.private_steps` does.

    Parameters:
        model: any module whose outputs have the images as first axis and that treats each image independently.
            Parameters with `requires_grad` are trained. It runs in the mode (train or eval) that it is in.
        loss: one loss per image from outputs and labels, for example
            `functools.partial(F.cross_entropy, reduction="none")`.
        clip_norm: largest L2 norm of one unit's contribution.
        clipping: "flat", "per-layer" or "automatic" (see `clip_factors`).
        reduction: whether a unit's gradient is the mean or the sum over its images, before clipping.
        micro_batch: largest number of images that pass through the model at once; the result is the same for
            any number. None: all.
        precision: a half-precision dtype to run the model in, by autocast; norms and sums stay in single precision.
        trial: what `try_out` has shown of this model. None: the first sum makes it, with made-up images, also as many
            as it has itself. Batches of other lengths are not tried; see `try_out`.

    `notices` names the layers that will be slow, and why. Raises InvalidValue at once for a model that
    cannot be made private.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        clip_norm: float,
        *,
        clipping: Clipping = "flat",
        reduction: Reduction = "mean",
        micro_batch: int | None = None,
        precision: torch.dtype | None = None,
        trial: Trial | None = None,
    ) -> None:
        check_clipping(clipping, clip_norm)
        if reduction not in get_args(Reduction):
            raise InvalidValue(f"reduction is {reduction!r}", "it must be mean or sum", "choose one of them")
        if micro_batch is not None and micro_batch < 1:
            raise InvalidValue(
                f"micro_batch is {micro_batch}",
                "it must be at least 1",
                "give the largest number of images at once",
            )
        self.notices = check_layers(model).notices
        self._model, self._loss = model, loss
        self._clip_norm, self._clipping, self._reduction = clip_norm, clipping, reduction
        self._micro_batch, self._precision = micro_batch, precision
        self._trial, self._calls, self._compared = trial, dict[Hashable, Calls](), set[Hashable]()

    @property
    def model(self) -> nn.Module:
        """The model whose gradients are summed."""
        return self._model

    @property
    def loss(self) -> Loss:
        """One loss for each image, from outputs and labels."""
        return self._loss

    @property
    def clip_norm(self) -> float:
        """Largest L2 norm of one unit's contribution."""
        return self._clip_norm

    @property
    def micro_batch(self) -> int | None:
        """Largest number of images that pass through the model at once; None: all."""
        return self._micro_batch

    def check(self, images: Tensor, labels: Tensor, lengths: tuple[int, ...] = ()) -> None:
        """Try model and loss out on made-up images and labels, as the first `sum` does, before anything is charged.

        Nothing of the images and labels is looked at but their shape and type; there may be none of them.
        `lengths` are the numbers of images that pass through the model at once, at which it is tried too; by default
        that of these images, or the micro-batch. Raises InvalidValue where no bound on a unit's contribution holds.
        """
        self._tried_out(images, labels, lengths)

    def sum(
        self, images: Tensor, labels: Tensor, units: Tensor, weights: Tensor | None = None
    ) -> GradientSum:
        """Sum the clipped gradients of the units in a batch.

        `images` is `(n, ...)`, `labels` `(n, ...)`, `units` `(n,)` integers, equal where images belong together.
        Views of one image that augmentation made are further images of its unit: under reduction "mean" they
        are averaged before clipping (augmentation multiplicity: De et al., arXiv 2204.13650). `weights` `(n,)`
        multiplies each image's loss on top; it must be public. An empty batch gives a zero vector.
        """
        batch = _Batch.of(images, labels, units, weights, self._reduction)
        total = _Total(Layout(self._model), batch.units)
        self._add(total, batch)
        return GradientSum(total.vector, batch.units, total.norms, total.losses)

    def each(self, images: Tensor, labels: Tensor, units: Tensor) -> Tensor:
        """The clipped gradient of each unit in a batch, `(units, dimension)`, in ascending order of unit.

        For attacks and tests: these are exact and private. Their sum is `sum(...).vector`, to rounding.
        """
        batch = _Batch.of(images, labels, units, None, self._reduction)
        total = _Each(Layout(self._model), batch.units)
        self._add(total, batch)
        return total.rows

    def _add(self, total: "_Total", batch: "_Batch") -> None:
        """Add all units of a batch."""
        plan = check_layers(self._model)
        if not batch.units:
            return
        calls = self._tried_out(batch.images, batch.labels)
        with state_guard(self._model), exact_products(total.vector.device):
            for part in micro_batches(batch.member, self._micro_batch):
                if self._micro_batch is not None and len(part) > self._micro_batch:
                    self._add_large_unit(total, calls, batch, torch.split(part, self._micro_batch))
                else:
                    self._add_units(total, plan, calls, batch, part)

    def _tried_out(self, images: Tensor, labels: Tensor, lengths: tuple[int, ...] = ()) -> Calls:
        """How the model calls its layers: from the trial that was given, or one that is made before it is needed.

        Only the shape and type of images and labels are used.
        """
        modes = tuple(module.training for module in self._model.modules())
        key = (images.shape[1:], images.dtype, labels.shape[1:], labels.dtype, modes)
        count = self._micro_batch or len(images)  # that pass through the model at once
        most = min(count, len(images)) if len(images) else count
        also = lengths or ((most,) if most else ())
        if key not in self._calls or (also and key not in self._compared):
            trial = self._trial or try_out(self._model, tuple(images.shape[1:]), images.dtype, also=also)
            calls = trial.calls
            some = next(iter(trainable_parameters(self._model).values()))
            check_loss(self._loss, calls, labels, some.device)
            self._calls[key] = calls
            self._compared |= {key} if also or self._trial else set()
        return self._calls[key]

    def _add_units(
        self,
        total: "_Total",
        plan: Plan,
        calls: Calls,
        batch: "_Batch",
        part: Tensor,
        silent: Tensor | None = None,
    ) -> None:
        """Add the units whose images are `part`; one whose gradient is not finite adds nothing.

        In its place, images of another unit are run again with weight 0 (`silent`), so that the others are rounded in
        a batch of the same size as before.
        """
        if not len(part):
            return
        ordered = UnitBatch(batch.member[part])
        part = part[ordered.order]
        members = torch.unique_consecutive(batch.member[part])

        def losses_of() -> Tensor:
            return self._weighted_losses(calls, batch, part, total.vector.device)

        losses, contributions = unit_contributions(plan, calls, total.layout, ordered, losses_of)
        squared = total.squared_norms(ordered.units)
        for c in contributions:
            squared[c.target.layer, c.first_unit : c.last_unit] += c.squared_norms()
        finite = squared.sum(0).isfinite().to(part.device)
        if not finite.all():
            # One infinite gradient in a product would make the whole sum infinite, and so reveal its unit.
            total.norms[members[~finite]] = float("nan")
            rest = part[ordered.repeat(finite)]
            if silent is None and len(rest):
                worse = part[ordered.repeat(~finite)]
                self._add_units(total, plan, calls, batch.silenced(worse, rest[0]), part, worse)
            else:
                self._add_units(total, plan, calls, batch, rest, silent)
            return
        factors = self._factors(total, members, squared, ordered.sum(losses))
        if silent is not None:
            total.norms[batch.member[silent]] = float("nan")
        for c in contributions:
            total.add(c, factors[c.target.layer, c.first_unit : c.last_unit], members)

    def _add_large_unit(
        self, total: "_Total", calls: Calls, batch: "_Batch", pieces: tuple[Tensor, ...]
    ) -> None:
        """Add one unit with more images than a micro-batch holds: its plain gradient over pieces, then clipped."""
        member, squared = batch.member[pieces[0][:1]], total.squared_norms(1)
        gradient, loss = torch.zeros_like(total.vector), squared.new_zeros(1)
        for piece in pieces:
            losses = self._weighted_losses(calls, batch, piece, total.vector.device)
            found = torch.autograd.grad(
                losses.sum(), list(total.layout.parameters.values()), allow_unused=True
            )
            for target, g in zip(total.layout.targets(), found, strict=True):
                if g is not None:
                    gradient[target.start : target.stop] += g.flatten()
            loss += losses.detach().sum()
        for target in total.layout.targets():
            squared[target.layer] += gradient[target.start : target.stop].double().square().sum()
        if not squared.isfinite().all():
            total.norms[member] = float("nan")
            return
        factors = self._factors(total, member, squared, loss)
        for target in total.layout.targets():
            part = Kept(target, 0, 0, gradient[None, target.start : target.stop])
            total.add(part, factors[target.layer], member)

    def _weighted_losses(self, calls: Calls, batch: "_Batch", part: Tensor, device: torch.device) -> Tensor:
        """Run the model on some images: each image's loss times its weight, `(images,)`."""
        images = batch.images[part.to(batch.images.device)].to(device)
        labels = batch.labels[part.to(batch.labels.device)].to(device)
        autocast: AbstractContextManager[object] = nullcontext()
        if self._precision is not None:
            autocast = torch.autocast(device.type, self._precision)
        with torch.enable_grad(), autocast:
            outputs = self._model(images)
            calls.results.require(*tree_flatten(outputs), len(part))
            losses = self._loss(outputs, labels)
        if losses.shape != (len(part),):
            raise InvalidValue(
                f"the loss of {len(part)} images has shape {tuple(losses.shape)}",
                "there must be one loss per image",
                'build the loss with reduction="none"',
            )
        return losses * batch.weights[part].to(losses)

    def _factors(self, total: "_Total", members: Tensor, squared: Tensor, losses: Tensor) -> Tensor:
        """Clip factors `(layers, units)` from squared norms, which are noted on the way."""
        squared = squared.clamp_min(0)  # a Gram sum may round to below zero
        total.norms[members] = squared.sum(0).sqrt().to(total.norms)
        total.losses[members] = losses.to(total.losses)
        return clip_factors(squared, self._clip_norm, self._clipping).to(total.vector)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images with the number of their unit (0, 1, ...) and their weight in its gradient."""

    images: Tensor
    labels: Tensor
    member: Tensor
    weights: Tensor
    units: int

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, units: Tensor, weights: Tensor | None, reduction: Reduction
    ) -> "_Batch":
        """Number the units and weigh their images."""
        lengths = {len(x) for x in (images, labels, units, weights) if x is not None}
        if len(lengths) != 1 or units.ndim != 1 or units.is_floating_point():
            raise InvalidValue(
                f"images, labels, units and weights have lengths {sorted(lengths)}, units dtype {units.dtype}",
                "there must be one label and one integer unit for each image",
                "give them row by row",
            )
        _, member, count = torch.unique(units.cpu(), return_inverse=True, return_counts=True)
        shares = 1 / count[member].double() if reduction == "mean" else torch.ones_like(member).double()
        return cls(images, labels, member, shares if weights is None else shares * weights.cpu(), len(count))

    def silenced(self, rows: Tensor, row: Tensor) -> "_Batch":
        """The same batch with another of its images in the place of some, and these of weight 0."""
        images, weights = self.images.clone(), self.weights.clone()
        images[rows.to(images.device)] = self.images[row.to(images.device)]
        weights[rows] = 0
        return replace(self, images=images, weights=weights)


class _Total:
    """What grows while parts of a batch are added."""

    def __init__(self, layout: Layout, units: int) -> None:
        some = next(iter(layout.parameters.values()))
        self.layout = layout
        self.vector = torch.zeros(
            layout.dimension, device=some.device, dtype=torch.promote_types(some.dtype, torch.float32)
        )
        self.norms = torch.zeros(units, dtype=torch.float64)
        self.losses = torch.zeros(units, dtype=torch.float64)

    def add(self, found: Contribution, factors: Tensor, members: Tensor) -> None:  # noqa: ARG002
        """Add the weighted sum of a contribution, whose units are some of ``members``, to its place."""
        self.vector[found.target.start : found.target.stop] += found.weighted_sum(factors)

    def squared_norms(self, units: int) -> Tensor:
        """Zeros to add squared norms to, `(layers, units)`."""
        return self.vector.new_zeros(self.layout.layers, units, dtype=torch.float64)


class _Each(_Total):
    """The same, unit by unit."""

    def __init__(self, layout: Layout, units: int) -> None:
        super().__init__(layout, units)
        self.rows = self.vector.new_zeros(units, layout.dimension)

    def add(self, found: Contribution, factors: Tensor, members: Tensor) -> None:
        """Add each unit's weighted gradient to its row."""
        columns = slice(found.target.start, found.target.stop)
        self.rows[members[found.first_unit : found.last_unit], columns] += (
            factors[:, None] * found.gradients()
        )
