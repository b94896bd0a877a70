"""Server optimisers: post-processing of noisy sums, as pure functions on frozen states.

An optimiser is a frozen value of public settings. `init` makes a state, `step` makes the next one from a
noisy gradient, `query` is the point of the next gradient, `released` the published parameters. A state converts to
named arrays and back without loss, so a resumed study continues exactly where it stopped.

Everything here uses only released values, so it costs no privacy: momentum, averaging and weight decay
are free.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.public_start import pulled, shrunk_towards


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerState:
    """Parameters, the number of steps that led to them, and the optimiser's running averages by name."""

    parameters: Vector
    steps: int = 0
    moments: Mapping[str, Vector] = field(default_factory=lambda: MappingProxyType({}))


class Optimizer(ABC):
    """A server's update rule."""

    @abstractmethod
    def init(self, parameters: npt.ArrayLike) -> OptimizerState:
        """Start at these parameters."""

    @abstractmethod
    def step(
        self, state: OptimizerState, gradient: npt.ArrayLike, *, noise_variance: float = 0.0
    ) -> OptimizerState:
        """Apply one noisy mean gradient.

        Args:
            state: the state before.
            gradient: shape (dimension,), finite.
            noise_variance: variance of the noise in each of its coordinates, a public number; only rules that
                correct for it use it.

        Raises:
            InvalidValue: a gradient of another shape or not finite.
        """

    def query(self, state: OptimizerState) -> Vector:
        """The point of the next gradient."""
        return state.parameters

    def released(self, state: OptimizerState) -> Vector:
        """The parameters of the model that this state stands for."""
        return state.parameters

    def to_arrays(self, state: OptimizerState) -> dict[str, npt.NDArray[Any]]:
        """Name the arrays that a checkpoint holds."""
        moments = {f"moment.{name}": value for name, value in state.moments.items()}
        return {"parameters": state.parameters, "steps": np.asarray(state.steps, dtype=np.int64), **moments}

    def from_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> OptimizerState:
        """Undo `to_arrays`.

        Raises:
            StudyError: the arrays are not those of this optimiser's states.
        """
        try:
            start = self.init(arrays["parameters"])
            moments = {name: np.array(arrays[f"moment.{name}"], dtype=np.float64) for name in start.moments}
            steps = int(arrays["steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise _foreign_checkpoint() from error
        if any(moments[name].shape != value.shape for name, value in start.moments.items()) or steps < 0:
            raise _foreign_checkpoint()
        return OptimizerState(start.parameters, steps, MappingProxyType(moments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(Optimizer):
    """Gradient descent with (heavy-ball) momentum: v <- mu v + g, x <- x - eta v.

    Attributes:
        learning_rate: eta.
        momentum: mu, in [0, 1).
        weight_decay: adds this times the parameters to the gradient (L2 regularisation).
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < np.inf, "be finite and positive")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "lie in [0, 1)")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < np.inf, "be finite, not negative")

    def init(self, parameters: npt.ArrayLike) -> OptimizerState:
        """Start at rest."""
        start = _vector(parameters)
        return OptimizerState(start, 0, MappingProxyType({"velocity": np.zeros_like(start)}))

    def step(
        self,
        state: OptimizerState,
        gradient: npt.ArrayLike,
        *,
        noise_variance: float = 0.0,  # noqa: ARG002 - descent is linear in the noise: nothing to correct
    ) -> OptimizerState:
        """Apply one gradient; see `Optimizer.step`."""
        direction = _gradient(gradient, state) + self.weight_decay * state.parameters
        velocity = self.momentum * state.moments["velocity"] + direction
        return OptimizerState(
            state.parameters - self.learning_rate * velocity,
            state.steps + 1,
            MappingProxyType({"velocity": velocity}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Optimizer):
    """Adam with the noise removed from its second moment: DP-AdamBC (Tang et al., 2312.14334, algorithm 1).

    Noise of variance s^2 in the gradient adds s^2 to the expected second moment, which turns Adam into
    descent with momentum where noise dominates. The running average of ``noise_variance`` is subtracted
    again:

        x <- x - eta m' / sqrt(max(v' - s^2, floor^2)),    m', v' without start-up bias.

    Attributes:
        learning_rate: eta.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        floor: the smallest denominator; the paper's sqrt(gamma').
        weight_decay: adds this times the parameters to the gradient.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    floor: float = 1e-4
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < np.inf, "be finite and positive")
        _check("beta1", self.beta1, 0 <= self.beta1 < 1, "lie in [0, 1)")
        _check("beta2", self.beta2, 0 <= self.beta2 < 1, "lie in [0, 1)")
        _check("floor", self.floor, 0 < self.floor < np.inf, "be finite and positive")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < np.inf, "be finite, not negative")

    def init(self, parameters: npt.ArrayLike) -> OptimizerState:
        """Start with empty moments."""
        start = _vector(parameters)
        moments = {"first": np.zeros_like(start), "second": np.zeros_like(start), "noise": np.zeros(1)}
        return OptimizerState(start, 0, MappingProxyType(moments))

    def step(
        self, state: OptimizerState, gradient: npt.ArrayLike, *, noise_variance: float = 0.0
    ) -> OptimizerState:
        """Apply one gradient; see `Optimizer.step`."""
        _check("noise_variance", noise_variance, 0 <= noise_variance < np.inf, "be finite, not negative")
        direction = _gradient(gradient, state) + self.weight_decay * state.parameters
        steps = state.steps + 1
        first = self.beta1 * state.moments["first"] + (1 - self.beta1) * direction
        second = self.beta2 * state.moments["second"] + (1 - self.beta2) * direction**2
        noise = self.beta2 * state.moments["noise"] + (1 - self.beta2) * noise_variance
        signal = (second - noise) / (1 - self.beta2**steps)
        update = first / (1 - self.beta1**steps) / np.sqrt(np.maximum(signal, self.floor**2))
        return OptimizerState(
            state.parameters - self.learning_rate * update,
            steps,
            MappingProxyType({"first": first, "second": second, "noise": noise}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged(Optimizer):
    """Another optimiser whose released model is the average of its iterates, which reduces noise.

    Polyak & Juditsky (1992); for private training De et al. (2204.13650) and Shejwalkar et al. (2208.10440).
    Gradients are still taken at the last iterate.

    Attributes:
        optimizer: the rule that makes the iterates.
        decay: None averages all iterates after ``skip`` alike; otherwise the weight of the past in an
            exponential moving average, free of start-up bias.
        skip: steps before averaging begins; until then the last iterate is released.
    """

    optimizer: Optimizer
    decay: float | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, Averaged):
            raise InvalidValue("an average is averaged", "one average is enough", "give the rule itself")
        _check("decay", self.decay, self.decay is None or 0 <= self.decay < 1, "lie in [0, 1)")
        _check("skip", self.skip, self.skip >= 0, "not be negative")

    def init(self, parameters: npt.ArrayLike) -> OptimizerState:
        """Start with an empty average."""
        return self._with_average(self.optimizer.init(parameters), np.zeros_like(_vector(parameters)))

    def step(
        self, state: OptimizerState, gradient: npt.ArrayLike, *, noise_variance: float = 0.0
    ) -> OptimizerState:
        """Apply one gradient and add the new iterate to the average."""
        after = self.optimizer.step(state, gradient, noise_variance=noise_variance)
        average, taken = state.moments["average"], after.steps - self.skip
        if taken >= 1:
            share = 1 / taken if self.decay is None else (1 - self.decay) / (1 - self.decay**taken)
            average = average + share * (after.parameters - average)
        return self._with_average(after, average)

    def query(self, state: OptimizerState) -> Vector:
        """The inner rule's point of the next gradient."""
        return self.optimizer.query(state)

    def released(self, state: OptimizerState) -> Vector:
        """The average; the last iterate while there is none."""
        return state.moments["average"] if state.steps > self.skip else self.optimizer.released(state)

    def _with_average(self, state: OptimizerState, average: Vector) -> OptimizerState:
        moments = MappingProxyType({**state.moments, "average": average})
        return OptimizerState(state.parameters, state.steps, moments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled(Optimizer):
    """Gradient descent from 0 whose iterates are pulled towards a public model; see `.models.public_start`.

    The state holds what plain descent has reached. The next gradient is taken at, and the released model is, the
    posterior mean given that.

    Attributes:
        optimizer: plain descent: without momentum and weight decay, whose noise would not be known.
        start: (logits, d) public weights.
        clip_norm: bound of a mean gradient.
    """

    optimizer: Sgd
    start: Vector
    clip_norm: float

    def __post_init__(self) -> None:
        plain = self.optimizer.momentum == 0 and self.optimizer.weight_decay == 0
        _check("the pulled optimiser", self.optimizer, plain, "have neither momentum nor weight decay")
        _check("clip_norm", self.clip_norm, 0 < self.clip_norm < np.inf, "be finite and positive")

    def init(self, parameters: npt.ArrayLike) -> OptimizerState:
        """Start at rest, with no noise so far."""
        return self._with_noise(self.optimizer.init(parameters), np.zeros(1))

    def step(
        self, state: OptimizerState, gradient: npt.ArrayLike, *, noise_variance: float = 0.0
    ) -> OptimizerState:
        """Apply one gradient; see `Optimizer.step`."""
        _check("noise_variance", noise_variance, 0 <= noise_variance < np.inf, "be finite, not negative")
        noise = state.moments["noise"] + self.optimizer.learning_rate**2 * noise_variance
        return self._with_noise(self.optimizer.step(state, gradient), noise)

    def query(self, state: OptimizerState) -> Vector:
        """The pulled iterate."""
        return self.released(state)

    def released(self, state: OptimizerState) -> Vector:
        """The pulled iterate."""
        longest = self.optimizer.learning_rate * state.steps * self.clip_norm
        variance, rows = float(state.moments["noise"][0]), state.parameters.reshape(self.start.shape)
        pairs = zip(rows, self.start, strict=True)
        return np.concatenate([pulled(row, start, variance, longest) for row, start in pairs])

    def _with_noise(self, state: OptimizerState, noise: Vector) -> OptimizerState:
        moments = MappingProxyType({**state.moments, "noise": noise})
        return OptimizerState(state.parameters, state.steps, moments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk(Optimizer):
    """Descent of a network from public weights, towards which iterates are shrunk; see `.models.public_start`.

    The noise in an iterate is a sum ``sum_t c_t e_t`` over rounds, since the rule is linear in its gradients. A probe
    that takes one impulse of the noise's size per round gives its variance exactly, with momentum and averaging. (As in
    `Pulled`, gradients are taken at shrunk iterates; what noise does to later gradients is left out.)

    Attributes:
        optimizer: without weight decay, which would pull towards 0.
        start: (d,) public weights.
        rounds: most steps.
    """

    optimizer: Sgd | Averaged
    start: Vector
    rounds: int

    def __post_init__(self) -> None:
        inner = self.optimizer.optimizer if isinstance(self.optimizer, Averaged) else self.optimizer
        linear = isinstance(inner, Sgd) and inner.weight_decay == 0
        _check("the shrunk optimiser", inner, linear, "be gradient descent without weight decay")
        _check("rounds", self.rounds, self.rounds > 0, "be positive")

    def init(self, parameters: npt.ArrayLike) -> OptimizerState:
        """Start at these parameters, with no noise so far."""
        return _joined(self.optimizer.init(parameters), self.optimizer.init(np.zeros(self.rounds)))

    def step(
        self, state: OptimizerState, gradient: npt.ArrayLike, *, noise_variance: float = 0.0
    ) -> OptimizerState:
        """Apply one gradient; see `Optimizer.step`."""
        _check("noise_variance", noise_variance, 0 <= noise_variance < np.inf, "be finite, not negative")
        _check("the round", state.steps + 1, state.steps < self.rounds, "be one of those planned")
        inner, probe = _separated(state)
        impulse = np.zeros(self.rounds)
        impulse[state.steps] = np.sqrt(noise_variance)
        return _joined(self.optimizer.step(inner, gradient), self.optimizer.step(probe, impulse))

    def query(self, state: OptimizerState) -> Vector:
        """The shrunk point of the next gradient."""
        inner, probe = _separated(state)
        return self._shrunk(self.optimizer.query(inner), self.optimizer.query(probe))

    def released(self, state: OptimizerState) -> Vector:
        """The shrunk parameters."""
        inner, probe = _separated(state)
        return self._shrunk(self.optimizer.released(inner), self.optimizer.released(probe))

    def _shrunk(self, found: Vector, noise: Vector) -> Vector:
        return shrunk_towards(found, self.start, float(noise @ noise))


PROBE = "probe"


def _joined(inner: OptimizerState, probe: OptimizerState) -> OptimizerState:
    """One state of both; the probe has taken as many steps."""
    own = {PROBE: probe.parameters} | {f"{PROBE}.{name}": value for name, value in probe.moments.items()}
    return OptimizerState(inner.parameters, inner.steps, MappingProxyType({**inner.moments, **own}))


def _separated(state: OptimizerState) -> tuple[OptimizerState, OptimizerState]:
    """Undo `_joined`."""
    own = {name: value for name, value in state.moments.items() if name.partition(".")[0] != PROBE}
    probe = {name: state.moments[f"{PROBE}.{name}"] for name in own}
    return (
        OptimizerState(state.parameters, state.steps, MappingProxyType(own)),
        OptimizerState(state.moments[PROBE], state.steps, MappingProxyType(probe)),
    )


def _vector(parameters: npt.ArrayLike) -> Vector:
    vector = np.array(parameters, dtype=np.float64)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise InvalidValue(
            f"parameters of shape {vector.shape} are not a finite vector",
            "an optimiser works on one flat, finite vector",
            "flatten them; if they have diverged, reduce the learning rate",
        )
    return vector


def _gradient(gradient: npt.ArrayLike, state: OptimizerState) -> Vector:
    vector = np.asarray(gradient, dtype=np.float64)
    if vector.shape != state.parameters.shape or not np.isfinite(vector).all():
        raise InvalidValue(
            f"a gradient of shape {vector.shape} is not finite or not for {state.parameters.size} parameters",
            "every step needs one finite number per parameter",
            "leave out the site that sent it",
        )
    return vector


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise InvalidValue(f"{name} is {value}", f"it must {rule}", "change it in the study file")


def _foreign_checkpoint() -> StudyError:
    return StudyError(
        "the checkpoint's arrays are not those of this optimiser",
        "a study must be resumed with its original settings",
        "restore the study file, or start again in a new directory",
    )
