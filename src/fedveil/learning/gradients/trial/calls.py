"""Which axis of which argument is the images: learned from runs on made-up images, and checked at every run.

A length that equals the number of images proves nothing: a table, a sequence or the colours of an image may have the
same length. So the network runs at two numbers of images. An axis whose length follows that number is the images; a
value that is the same both times does not depend on it, and is never cut; anything else is refused. What was learned
is remembered by the layer, the position of the call and the position of the value in it. At run time it is checked,
never inferred again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import KeyPath, TreeSpec, keystr, tree_flatten_with_path

from fedveil.errors import InvalidValue

__all__ = [
    "BATCH_FIRST",
    "SIZES",
    "Call",
    "Calls",
    "Leaf",
    "Leaves",
    "brief",
    "cure",
    "learn_calls",
    "substituted",
]

SIZES = (5, 7)
"""Numbers of images of a trial: two, without a common divisor, so that no axis can follow both by chance."""
BATCH_FIRST = "the first axis must be the images, so that each gradient can be attributed to its patient"

_PLAIN = (bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device, slice)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value among the arguments or the results of a call: a tensor, or a constant."""

    name: str
    """Its description in words."""
    shape: tuple[int, ...] | None
    """Shape of the tensor for one image; None for a constant."""
    axis: int | None = None
    """Which axis of the tensor grows with the images; None: it is the same for any number of them."""
    value: Any = None
    """The constant."""

    @property
    def rows(self) -> int:
        """Entries of the axis for each image."""
        return 0 if self.shape is None or self.axis is None else self.shape[self.axis]

    def fits(self, value: Any, images: int) -> bool:
        """Whether a value matches this one, for another number of images."""
        if self.shape is None or not isinstance(value, Tensor):
            return self.shape is None and _same(self.value, value)
        expected = list(self.shape)
        if self.axis is not None:
            expected[self.axis] *= images
        return value.shape == tuple(expected)

    def like(self, other: "Leaf") -> bool:
        """Whether both have the same role."""
        return (self.shape, self.axis) == (other.shape, other.axis) and _same(self.value, other.value)


@dataclass(frozen=True, slots=True)
class Leaves:
    """The values in a nested structure."""

    owner: str
    structure: TreeSpec
    leaves: tuple[Leaf, ...]

    def like(self, other: "Leaves") -> bool:
        """Whether both have the same roles."""
        return self.structure == other.structure and all(
            a.like(b) for a, b in zip(self.leaves, other.leaves, strict=True)
        )

    def require(self, values: Sequence[Any], structure: TreeSpec, images: int) -> None:
        """Refuse values that differ from the trial."""
        if structure != self.structure:
            wrong = f"what goes into or out of {self.owner}"
        else:
            misfits = (
                leaf.name
                for leaf, value in zip(self.leaves, values, strict=True)
                if not leaf.fits(value, images)
            )
            wrong = next(misfits, "")
        if wrong:
            raise InvalidValue(
                f"{wrong} is not for {images} images what it was in the trial",
                "shapes and Python numbers in a network must not depend on how many images there are, nor on what "
                "they show",
                "let them follow from the shape of one image, and name the axis where you squeeze one (squeeze(1))",
            )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one layer."""

    arguments: Leaves
    results: Leaves | None
    """None for layers whose rule makes them itself."""

    def like(self, other: "Call") -> bool:
        """Whether both calls are the same, but for what tensors hold."""
        if not self.arguments.like(other.arguments):
            return False
        return self.results is other.results or (
            self.results is not None and other.results is not None and self.results.like(other.results)
        )


@dataclass(frozen=True, slots=True)
class Calls:
    """How a network calls its layers, and what comes out of it."""

    of: Mapping[nn.Module, tuple[Call, ...]]
    """Of each layer that is run by a rule: its calls in turn."""
    results: Leaves
    """Of the network itself: every tensor has one row for each image."""


@contextmanager
def substituted(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Run modules by other forward passes for the duration."""
    replaced: dict[nn.Module, Any] = {}
    try:
        for module, forward in forwards.items():
            replaced[module] = vars(module).get("forward")
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in replaced.items():
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one run showed of a value."""

    path: KeyPath
    shape: tuple[int, ...] | None
    value: Any


_Tree = tuple[TreeSpec, list[_Seen]]
_Heard = dict[nn.Module, list[tuple[_Tree, _Tree]]]


def learn_calls(
    model: nn.Module,
    labels: Mapping[nn.Module, str],
    cut: frozenset[nn.Module],
    images: Callable[[int], Tensor],
    sizes: tuple[int, int] = SIZES,
) -> Calls:
    """Run a network on two numbers of made-up images, in the mode that it is in.

    `labels` names the layers to listen to, `cut` those whose arguments are cut by patient, `images(n)` makes n
    images up. Raises InvalidValue where the network cannot be run, or where it cannot be told which axis is the
    images.
    """
    runs, outputs = zip(*(_run(model, labels, images(size)) for size in sizes), strict=True)
    of = {}
    for module, label in labels.items():
        one, other = (run[module] for run in runs)
        if len(one) != len(other):
            raise InvalidValue(
                f"{label} was called {len(one)} times for {sizes[0]} images and {len(other)} times for {sizes[1]}",
                "a layer must be called as often for any number of images",
                "call it once, on all images together",
            )
        of[module] = tuple(
            Call(
                _decided("argument", label, module, a[0], b[0], sizes, cut=module in cut),
                _decided("result", label, module, a[1], b[1], sizes, cut=True) if module in cut else None,
            )
            for a, b in zip(one, other, strict=True)
        )
    results = _decided("result", "the network", None, outputs[0], outputs[1], sizes, cut=True)
    for leaf in results.leaves:
        if leaf.shape is not None and leaf.axis != 0:
            raise InvalidValue(
                f"{leaf.name} has the shape {leaf.shape} for one image",
                BATCH_FIRST,
                "return only tensors whose first axis is the images",
            )
    return Calls(of, results)


def cure(module: nn.Module | None, otherwise: str) -> str:
    """The remedy if arguments of a layer cannot be split by patient."""
    match module:
        case nn.RNNBase():
            return (
                "give it padded sequences (images, length, features) instead of packed ones, and read each "
                "image's output at its last step"
            )
        case nn.EmbeddingBag():
            return "give it indices (images, tokens) and no offsets"
    return otherwise


def _run(model: nn.Module, labels: Mapping[nn.Module, str], images: Tensor) -> tuple[_Heard, _Tree]:
    """One run that records the inputs and outputs of layers."""
    heard: _Heard = {module: [] for module in labels}
    shape = tuple(images.shape)
    forwards = {
        module: partial(
            _listened,
            module,
            f"layer {name} ({type(module).__name__})" if name else "the network",
            module.forward,
            heard.get(module),
            shape,
        )
        for name, module in model.named_modules()
    }
    # With gradients: without them PyTorch's transformer layers use another code path that bypasses the layers inside
    # them.
    with torch.enable_grad(), substituted(forwards):
        output = model(images)
    return heard, _seen(output)


def _listened(
    module: nn.Module,
    label: str,
    forward: Callable[..., Any],
    heard: list[tuple[_Tree, _Tree]] | None,
    shape: tuple[int, ...],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A module's own forward pass, with its values recorded and its errors explained."""
    arguments = _seen((args, kwargs))
    try:
        results = forward(*args, **kwargs)
    except InvalidValue:
        raise
    except Exception as error:
        given = ", ".join(str(leaf.shape) for leaf in arguments[1] if leaf.shape is not None)
        raise InvalidValue(
            f"{label} cannot be run on tensors of shape {given} ({type(error).__name__}: {brief(error)})",
            f"the network must take {shape[0]} images of shape {shape[1:]}",
            _repair(module),
        ) from error
    if heard is not None:
        heard.append((arguments, _seen(results)))
    return results


def brief(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".:")


def _repair(module: nn.Module) -> str:
    """The remedy if a layer cannot be run at all."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "where images are integers, say so: check_private(model, shape, dtype=torch.long)"
    if hasattr(module, "kernel_size"):
        return "give larger images, pad the input of this layer, or take a smaller kernel"
    return (
        "correct the layer, or the shape of the images: the network alone must take torch.rand of this shape"
    )


def _seen(tree: Any) -> _Tree:
    """Shapes and constants; no tensor is kept alive."""
    leaves, structure = tree_flatten_with_path(tree)
    return structure, [
        _Seen(path, tuple(value.shape), None) if isinstance(value, Tensor) else _Seen(path, None, value)
        for path, value in leaves
    ]


def _decided(
    kind: str,
    label: str,
    module: nn.Module | None,
    one: _Tree,
    other: _Tree,
    sizes: tuple[int, int],
    *,
    cut: bool,
) -> Leaves:
    """Which axis of which value is the images."""
    if one[0] != other[0]:
        raise InvalidValue(
            f"the {kind}s of {label} have another structure for {sizes[0]} images than for {sizes[1]}",
            "it must not depend on how many images there are",
            cure(module, "give and return tensors whose first axis is the images"),
        )
    leaves = []
    for a, b in zip(one[1], other[1], strict=True):
        # Arguments are a pair, of those by position and those by name.
        name = f"{kind} {keystr(a.path[1:] if kind == 'argument' else a.path)} of {label}".replace("  ", " ")
        leaf = _role(name, a, b, sizes)
        if leaf is None or (cut and leaf.rows > 1):
            raise InvalidValue(
                f"{name} is {_described(a)} for {sizes[0]} images and {_described(b)} for {sizes[1]}",
                "it must be the same for any number of images, or have one axis that is the images",
                cure(module, "give and return tensors whose first axis is the images, and constants"),
            )
        leaves.append(leaf)
    return Leaves(label, one[0], tuple(leaves))


def _role(name: str, one: _Seen, other: _Seen, sizes: tuple[int, int]) -> Leaf | None:
    """The role of a value, or None if it cannot be determined."""
    if one.shape is None or other.shape is None:
        constant = one.shape is other.shape and _same(one.value, other.value)
        return Leaf(name, None, value=one.value) if constant else None
    if len(one.shape) != len(other.shape):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b]
    if not axes:
        return Leaf(name, one.shape)
    if len(axes) > 1:
        return None
    (axis,) = axes
    rows, rest = divmod(one.shape[axis], sizes[0])
    if rest or other.shape[axis] != rows * sizes[1]:
        return None
    return Leaf(name, (*one.shape[:axis], rows, *one.shape[axis + 1 :]), axis)


def _same(one: Any, other: Any) -> bool:
    """Whether two values that are no tensors are the same constant."""
    return one is other or (type(one) is type(other) and type(one) in _PLAIN and one == other)


def _described(seen: _Seen) -> str:
    """A value, in words."""
    if seen.shape is not None:
        return f"of shape {seen.shape}"
    return repr(seen.value) if type(seen.value) in _PLAIN else f"a {type(seen.value).__name__}"
