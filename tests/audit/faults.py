"""Twenty faults that change what leaves a hospital, or its price: each patches the product while a stack is open."""

import contextlib
import math
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from fedveil.federation import noise, secure_rounds, site
from fedveil.federation.agreement import Agreement
from fedveil.federation.queries import GradientQuery, HospitalUnits
from fedveil.federation.queries.query import Asking
from fedveil.federation.secure_aggregation import Session, masks
from fedveil.federation.site import Site
from fedveil.learning import HeldOut
from fedveil.learning.exact import grid
from fedveil.learning.models import logistic
from fedveil.learning.models.linear_head import CentredLearner
from fedveil.learning.models.logistic import LinearLearner
from fedveil.privacy import IntegerMechanism
from fedveil.privacy import release as with_noise

Stack = contextlib.ExitStack


def _patch(stack: Stack, owner: ModuleType | type, name: str, value: object) -> None:
    stack.enter_context(mock.patch.object(owner, name, value))


def half_the_noise(stack: Stack) -> None:
    """The standard deviation is halved."""
    _patch(stack, noise, "release", lambda total, std, generator: with_noise(total, std / 2, generator))


def noise_seeded_by_the_study(stack: Stack) -> None:
    """A site's generator is made from the study's seed."""
    _patch(stack, site, "secure_generator", lambda: np.random.default_rng(0))


def kept_seed(stack: Stack) -> None:
    """Each answer starts the generator again from the state that the site was started with."""
    protect, starts = Site._protect, {}

    def again(self: Site, *args: Any) -> Any:
        bits = self._generator.bit_generator
        bits.state = starts.setdefault(id(self), bits.state)
        return protect(self, *args)

    def anew(self: Site, *args: Any, **kwargs: Any) -> None:
        starts.pop(id(self), None)
        start(self, *args, **kwargs)

    start = Site.__init__
    _patch(stack, Site, "__init__", anew)
    _patch(stack, Site, "_protect", again)


def one_share_too_few(stack: Stack) -> None:
    """Shares are so small that one more of them is needed than are honest."""
    step = IntegerMechanism.step
    scaled = property(lambda self: step.fget(self) * math.sqrt(self.shares / (self.shares + 1)))  # type: ignore[attr-defined]
    _patch(stack, IntegerMechanism, "step", scaled)


def drop_out_without_enough_shares(stack: Stack) -> None:
    """A round is opened although too few honest shares of noise are in it."""

    def session(agreement: Agreement, sites: tuple[str, ...], first: int, rounds: int) -> Session:
        ordered = tuple(one for one in agreement.sites if one in sites)
        return Session.of(agreement.digest, ordered, first_round=first, rounds=min(rounds, 256), min_honest=1)

    _patch(stack, Agreement, "enough", lambda self, survivors: survivors >= 2)
    _patch(stack, secure_rounds, "session_of", session)


def masks_of_31_bits(stack: Stack) -> None:
    """The highest bit of each mask is 0."""
    real = masks._stream

    class Short:
        def __init__(self, key: bytes, counter: int) -> None:
            self._stream = real(key, counter)

        def update_into(self, data: Any, buffer: bytearray) -> int:
            written = self._stream.update_into(data, buffer)
            words = np.frombuffer(buffer, np.uint32, count=len(data) // 4)
            np.bitwise_and(words, np.uint32(2**31 - 1), out=words)
            return written

    _patch(stack, masks, "_stream", Short)


def rounding_without_its_sensitivity(stack: Stack) -> None:
    """Sums are rounded away from zero on a grid as coarse as the clip norm, and priced as if they were not."""

    def encode(self: IntegerMechanism, vector: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        scaled = np.sign(vector) * np.ceil(np.abs(vector) / self.step)
        std = self.mechanism.noise_multiplier / math.sqrt(self.shares)
        return (scaled + np.rint(generator.normal(0, std, len(scaled)))).astype(np.int64).astype(np.uint32)

    _patch(stack, IntegerMechanism, "step", property(lambda self: self.mechanism.clip_norm))
    _patch(stack, IntegerMechanism, "encode", encode)


def clip_per_image(stack: Stack) -> None:
    """Gradients of images are clipped and added up; the guarantee is stated per patient."""

    def centred(self: CentredLearner) -> LinearLearner:
        with mock.patch.object(self, "_unit", "image"):
            return made(self)

    made = CentredLearner._centred
    _patch(stack, CentredLearner, "_centred", centred)


def wrong_unit(stack: Stack) -> None:
    """A hospital counts each image as a patient."""
    start = CentredLearner.__init__

    def begun(self: CentredLearner, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{**kwargs, "unit": "image"})

    _patch(stack, CentredLearner, "__init__", begun)


def clip_per_batch(stack: Stack) -> None:
    """The sum of a batch is clipped to the number of its patients times the clip norm, not each patient's gradient."""

    def clipped(gradients: np.ndarray, clip_norm: float) -> np.ndarray:
        length = np.linalg.norm(gradients.sum(axis=1))
        factor = min(1.0, clip_norm * gradients.shape[1] / max(length, 1e-300))
        return np.trunc(gradients * factor / grid(clip_norm))

    _patch(stack, logistic, "_clipped", clipped)


def margin_by_the_largest_patient(stack: Stack) -> None:
    """All gradients are divided by the norm of the largest."""
    real = LinearLearner.contribution

    def contribution(self: LinearLearner, parameters: Any, *, clip_norm: float, **more: Any) -> Any:
        weights, offsets = self._head.weights(parameters), more.get("offsets", 0.0)
        largest = max(
            np.linalg.norm(part.gradients(self._head, weights, offsets), axis=0).max()
            for part in self._everyone
        )
        loose = real(self, parameters, clip_norm=1e6, **more)
        return loose * min(1.0, clip_norm / largest)

    _patch(stack, LinearLearner, "contribution", contribution)


def sampling_that_is_not_done(stack: Stack) -> None:
    """Everybody takes part in every step; the price is that of a sample."""
    _patch(stack, Asking, "draw", lambda self, part: None)


def normaliser_by_private_count(stack: Stack) -> None:
    """A sum is divided by the hospital's own number of patients."""
    real = GradientQuery.contribution

    def mean(self: GradientQuery, units: HospitalUnits, *args: Any) -> np.ndarray:
        return real(self, units, *args) * (10 / units.training.units)

    _patch(stack, GradientQuery, "contribution", mean)


def statistics_that_are_not_charged(stack: Stack) -> None:
    """The first release costs nothing."""
    reserve = Site._reserve

    def skipped(self: Site, request: Any, *args: Any) -> None:
        if request.release != "statistics":
            reserve(self, request, *args)

    _patch(stack, Site, "_reserve", skipped)


def an_image_counted_twice(stack: Stack) -> None:
    """The images of a patient who has more than fifteen are read a second time."""
    real = LinearLearner.contribution

    def contribution(self: LinearLearner, parameters: Any, **more: Any) -> Any:
        many = np.flatnonzero(self._sizes > 15)
        return real(self, parameters, **more) + real(self, parameters, **more | {"units": many})

    _patch(stack, LinearLearner, "contribution", contribution)


def _exact(stack: Stack, release: str, part: slice) -> None:
    """Some numbers of a release leave without noise."""
    protect = Site._protect

    def without(self: Site, request: Any, agreement: Any, given: Any, total: np.ndarray) -> Any:
        vector = protect(self, request, agreement, given, total)
        if request.release == release:
            vector = vector.copy()
            vector[part] = total[part]
        return vector

    _patch(stack, Site, "_protect", without)


def threshold_by_exact_counts(stack: Stack) -> None:
    """The release behind the decision threshold has no noise."""
    _exact(stack, "calibration", slice(None))


def a_buffer_that_leaks(stack: Stack) -> None:
    """One number of an update is sent as it is, like the running mean of a normalisation layer."""
    _exact(stack, "training", slice(-1, None))


def noise_before_clipping(stack: Stack) -> None:
    """Each patient's gradient gets noise, and is clipped with it; the sum gets none."""
    clipped = logistic._clipped

    def noisy(gradients: np.ndarray, clip_norm: float) -> np.ndarray:
        std = clip_norm / math.sqrt(gradients.shape[1])
        return clipped(gradients + np.random.default_rng().normal(0, std, gradients.shape), clip_norm)

    _patch(stack, logistic, "_clipped", noisy)
    _patch(stack, noise, "release", lambda total, std, generator: total)


def evaluation_on_training_patients(stack: Stack) -> None:
    """The patients that a model is tested on are those that it was trained on."""

    def units(*, learner: CentredLearner, held_out: HeldOut | None) -> HospitalUnits:
        del held_out
        model, features = learner._model, learner._features
        judged = HeldOut(
            lambda parameters: model.probabilities(parameters, features),
            learner._labels,
            learner._patients,
            classes=model.classes,
            unit="patient",
        )
        return HospitalUnits(learner=learner, held_out=judged)

    _patch(stack, site, "HospitalUnits", units)


def a_repeated_round_for_free(stack: Stack) -> None:
    """A round that is asked for again is answered again, and charged once."""
    reserve = Site._reserve

    def once(self: Site, request: Any, *args: Any) -> None:
        paid = self.__dict__.setdefault("paid", set())
        if (request.release, request.round) not in paid:
            paid.add((request.release, request.round))
            reserve(self, request, *args)

    _patch(stack, Site, "_reserve", once)
