"""An audit of any mechanism: a search for neighbouring inputs whose outputs differ by more than is claimed.

The mechanism is a black box, any callable from an input to numbers. Half of the outputs are used to explore: which of
the neighbouring inputs, and which test (see `.distinguisher`), refute the claim most clearly. That one test is judged
on the other half, by exact intervals, so that only one comparison is made and none needs correcting for. Like every
audit it bounds epsilon from below: that nothing is found proves nothing.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedveil.audit.claims import Claim, EpsilonClaim
from fedveil.audit.mechanisms.distinguisher import LearntTest, learn
from fedveil.audit.mechanisms.neighbours import Neighbours, default_neighbours
from fedveil.errors import FedveilError, InvalidValue

__all__ = ["MechanismAudit", "audit_mechanism", "epsilon_claim"]

Vector = NDArray[np.float64]
Mechanism = Callable[[Any], object]

LEAST_RUNS = 200
"""Fewer outputs per input teach a test nothing, and bound no epsilon worth naming."""
_EXPLORED = 90  # outputs per input of every pair, before one pair is chosen

_CURIOUS = 0.2  # caution where inputs are compared by few outputs


@dataclass(frozen=True, slots=True)
class MechanismAudit:
    """What an audit found.

    Attributes:
        claim: as given.
        neighbours: name of the inputs that were judged.
        test: name of the test that was judged.
        runs: outputs per input that judged it; as many at least were used to find it.
        confidence: with which the bounds hold.
        true_positives: the test's true positive rate, at least.
        false_positives: its false positive rate, at most.
        epsilon: lower bound on epsilon at the claim's delta.
        violated: whether the claim is refuted at this confidence.
        constant: whether outputs never varied on the same input: there is no noise, or it is the same each time.
        replayed: whether noise was the same after each start of the process, so that it can be subtracted. That
            refutes any claim, whatever ``epsilon`` is.
        explored: of every pair of inputs, how strongly its outputs seemed to differ, before one was chosen.
        seconds: that it took.
    """

    claim: Claim
    neighbours: str
    test: str
    runs: int
    confidence: float
    true_positives: float
    false_positives: float
    epsilon: float
    violated: bool
    constant: bool
    explored: Mapping[str, float]
    seconds: float
    replayed: bool = False

    @property
    def allowed(self) -> float:
        """The largest true positive rate that the claim allows at this false positive rate."""
        return _most(self.claim, self.false_positives)

    def __str__(self) -> str:
        claim = f"epsilon {self.claim.epsilon():.4g} at delta {self.claim.delta:.3g}"
        verdict = (
            f"The claim of {claim} is refuted" if self.violated else f"No violation of {claim} was found"
        )
        lines = [
            f"{verdict}, at {self.confidence:.4g} confidence: epsilon is at least {self.epsilon:.3g}.",
            f"Inputs: {self.neighbours}. Test: {self.test}, on {self.runs} fresh outputs of each input.",
            f"It tells them apart with at least {self.true_positives:.3g} true positives at no more than "
            f"{self.false_positives:.3g} false ones; the claim allows {self.allowed:.3g}.",
        ]
        if self.violated and self.epsilon <= self.claim.epsilon():
            lines.append("That is more than the whole trade-off function behind this epsilon allows.")
        if self.constant:
            lines.append(
                "The outputs for the same input are always the same: there is no noise, or a fixed one."
            )
        if self.replayed:
            lines.append(
                "The noise is the same after each start of the process: whoever knows the code can subtract it."
            )
        if not self.violated:
            lines.append("That none was found proves nothing: another attacker, or more runs, may find one.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "claimed": {"epsilon": self.claim.epsilon(), "delta": self.claim.delta},
            "violated": self.violated,
            "confidence": self.confidence,
            "epsilon_lower_bound": self.epsilon,
            "true_positive_rate_at_least": self.true_positives,
            "false_positive_rate_at_most": self.false_positives,
            "true_positive_rate_allowed": self.allowed,
            "neighbours": self.neighbours,
            "test": self.test,
            "runs_per_input": self.runs,
            "constant": self.constant,
            "replayed": self.replayed,
            "explored": dict(self.explored),
            "seconds": self.seconds,
        }


def audit_mechanism(
    mechanism: Mechanism,
    claim: Claim | tuple[float, float],
    *,
    neighbours: Sequence[Neighbours] | None = None,
    dimension: int = 8,
    bound: float = 1.0,
    runs: int = 2000,
    confidence: float = 0.99,
    seconds: float = math.inf,
) -> MechanismAudit:
    """Look for neighbouring inputs whose outputs refute a claimed guarantee.

    >>> from fedveil.privacy import gaussian, secure_generator
    >>> generator = secure_generator()
    >>> def without_clipping(contributions):
    ...     return sum(contributions) + gaussian(8, 4.8, generator)  # epsilon 1 if no norm is above 1
    >>> audit_mechanism(without_clipping, (1.0, 1e-5), runs=400).violated
    True

    Args:
        mechanism: from an input, by default a list of vectors, to a number, an array, or lists and dicts of them.
        claim: (epsilon, delta), or a `Claim`.
        neighbours: inputs to try instead of lists of vectors; see `default_neighbours` for these.
        dimension: length of the vectors.
        bound: the norm to which the mechanism is said to clip them.
        runs: outputs of each of the two inputs that are finally compared. Half of them find the test, half judge it.
        confidence: of the verdict. A sound mechanism is called unsound with probability ``1 - confidence`` at most.
        seconds: runs are reduced so that the mechanism takes about this long.

    Raises:
        InvalidValue: the mechanism fails, returns no finite numbers or another number of them from run to run, or
            returns always the same whatever its input.
    """
    started = time.monotonic()
    claim = claim if isinstance(claim, Claim) else epsilon_claim(*claim)
    pairs = tuple(neighbours) if neighbours is not None else default_neighbours(dimension, bound=bound)
    _check(pairs, runs, confidence)
    box = _Box(mechanism, np.random.default_rng())
    runs = _affordable(box, pairs, runs, seconds)
    few = max(_EXPLORED, runs // (4 * len(pairs)))
    seen = [box.outputs(pair, few) for pair in pairs]
    _check_variety(seen)
    tests = [learn(*outputs, claim, caution=_CURIOUS) for outputs in seen]
    best = max(range(len(pairs)), key=lambda index: tests[index].strength)
    pair, half = pairs[best], runs // 2
    more = box.outputs(pair, max(half - few, 0))
    first, second = (np.concatenate(both) for both in zip(seen[best], more, strict=True))
    test = learn(first, second, claim)
    found = _judge(claim, pair, test, box.outputs(pair, half), confidence)
    explored = {one.name: round(float(tested.strength), 4) for one, tested in zip(pairs, tests, strict=True)}
    return replace(found, explored=explored, seconds=round(time.monotonic() - started, 3))


def _judge(
    claim: Claim, pair: Neighbours, test: LearntTest, outputs: tuple[Vector, Vector], confidence: float
) -> MechanismAudit:
    true, false = test.rates(*outputs, confidence)
    return MechanismAudit(
        claim=claim,
        neighbours=pair.name,
        test=test.name,
        runs=len(outputs[0]),
        confidence=confidence,
        true_positives=true,
        false_positives=false,
        epsilon=_least_epsilon(claim, false, true),
        violated=true > _most(claim, false),
        constant=all((one == one[0]).all() for one in outputs),
        explored={},
        seconds=0.0,
    )


def epsilon_claim(epsilon: float, delta: float) -> EpsilonClaim:
    """The claim of one pair; raises InvalidValue if there is nothing to refute."""
    if not 0 <= epsilon < math.inf:
        raise InvalidValue(
            f"the claimed epsilon is {epsilon:g}",
            "it must be at least 0 and finite: without a guarantee there is nothing to refute",
            "give the epsilon that the mechanism is said to have",
        )
    if not 0 <= delta < 1:
        raise InvalidValue(
            f"the claimed delta is {delta:g}", "it must lie in [0, 1)", "0 is pure differential privacy"
        )
    return EpsilonClaim(float(epsilon), float(delta))


def _most(claim: Claim, false: float) -> float:
    return float(claim.most_true(np.array([false]))[0])


def _least_epsilon(claim: Claim, false: float, true: float) -> float:
    """The epsilon that the rates prove of any mechanism, whatever its kind: no family of noise is assumed."""
    pair = EpsilonClaim(0.0, claim.delta)
    return max(0.0, float(pair.strength(np.array([false]), np.array([true]))[0]))


@dataclass(slots=True)
class _Box:
    """The mechanism, with its outputs as vectors of one length."""

    mechanism: Mechanism
    order: np.random.Generator
    length: int | None = None

    def outputs(self, pair: Neighbours, count: int) -> tuple[Vector, Vector]:
        """So many outputs on either input, run in random order: what drifts must not look like a difference."""
        found: tuple[list[Vector], list[Vector]] = ([], [])
        for which in self.order.permutation(np.repeat([0, 1], count)):
            found[which].append(self.run(pair.name, pair.second if which else pair.first))
        return tuple(np.array(one).reshape(count, self.length or 0) for one in found)  # type: ignore[return-value]

    def run(self, name: str, given: Any) -> Vector:
        """One output, checked; the mechanism gets a copy of its input, which it may change."""
        try:
            output = self.mechanism(copy.deepcopy(given))
        except FedveilError:
            raise
        except Exception as error:
            raise InvalidValue(
                f'the mechanism failed on "{name}": {type(error).__name__}: {str(error)[:200]}',
                "it must answer every input, since a failure that depends on data is an answer without noise",
                "correct it, or give neighbouring inputs that it can take",
            ) from error
        vector = np.concatenate([np.empty(0), *_numbers(output)])
        if not np.isfinite(vector).all() or not vector.size:
            raise InvalidValue(
                f'the mechanism returned {vector.size} numbers on "{name}", not all finite',
                "it must return at least one number, all finite",
                "return what leaves the hospital, as numbers",
            )
        self.length = self.length or len(vector)
        if len(vector) != self.length:
            raise InvalidValue(
                f'the mechanism returned {len(vector)} numbers on "{name}", and {self.length} before',
                "it must return as many in every run: a length that depends on data is an answer without noise",
                "return a fixed number of values, or give inputs for which their number is the same",
            )
        return vector


def _numbers(output: object) -> Iterator[Vector]:
    """The numbers of an output in a fixed order: of dicts by key, of lists one after the other."""
    if isinstance(output, Mapping):
        for key in sorted(output, key=str):
            yield from _numbers(output[key])
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _numbers(one)
    else:
        found = np.asarray(output.detach().cpu() if hasattr(output, "detach") else output)
        if found.dtype.kind not in "iufb":
            raise InvalidValue(
                f"the mechanism returned {type(output).__name__}",
                "an output must be numbers: a number, an array, or lists and dicts of these",
                "return what leaves the hospital, as numbers",
            )
        yield found.astype(np.float64).ravel()


def _check(pairs: Sequence[Neighbours], runs: int, confidence: float) -> None:
    if not pairs:
        raise InvalidValue("no neighbouring inputs are given", "at least one pair is needed", "give one")
    if runs < LEAST_RUNS:
        raise InvalidValue(
            f"runs is {runs}", f"it must be at least {LEAST_RUNS}", "2000 outputs of each input are usual"
        )
    if not 0.5 <= confidence < 1:
        raise InvalidValue(f"confidence is {confidence:g}", "it must lie in [0.5, 1)", "0.99 is usual")


def _affordable(box: _Box, pairs: Sequence[Neighbours], runs: int, seconds: float) -> int:
    """As many runs as fit the time, by the first output on every input."""
    started = time.monotonic()
    for pair in pairs:
        box.run(pair.name, pair.first)
        box.run(pair.name, pair.second)
    each = (time.monotonic() - started) / (2 * len(pairs))
    explored = 2 * _EXPLORED * len(pairs)
    fits = int(min((seconds / max(each, 1e-9) - explored) / 2, runs))
    if fits < LEAST_RUNS:
        needed = each * (explored + 2 * LEAST_RUNS)
        raise InvalidValue(
            f"one run of the mechanism takes {each:.3g} seconds, and {seconds:g} are given for all",
            f"at least {LEAST_RUNS} outputs of each of two inputs are needed, beside {explored} to choose these inputs",
            f"give {math.ceil(needed)} seconds, fewer pairs of inputs, or a smaller problem",
        )
    return fits


def _check_variety(seen: Sequence[tuple[Vector, Vector]]) -> None:
    everything = np.concatenate([one for both in seen for one in both])
    if (everything == everything[0]).all():
        raise InvalidValue(
            f"the mechanism returned the same numbers in all {len(everything)} runs, whatever its input",
            "a mechanism whose output depends on nothing cannot be audited",
            "give inputs that it uses, and return what it releases",
        )
