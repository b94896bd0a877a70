"""What a consortium has and would accept, and what noise each way to train under it needs.

A `Configuration` is whom to protect, whom to trust, what to train and how. Its noise is that of the agreement which a
run between as
many hospitals would have: they follow from the study and an empty data set, so nothing of a patient is needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from scipy.special import ndtri

from fedveil.data import Dataset
from fedveil.errors import InvalidValue, StudyError
from fedveil.federation import Agreement
from fedveil.learning import Model
from fedveil.privacy import Guarantee, Mechanism, Trust, Unit, calibrate, epsilon
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import model_of
from fedveil.study.recipes import Method, Metric, Recipe, own_settings, variant
from fedveil.study.settings.schema import DataSettings, ModelSettings, Study, StudySettings, TrainingSettings
from fedveil.study.steps import signal_to_noise

__all__ = ["METHODS", "TRUSTS", "UNITS", "Configuration", "PlanRequest", "Sampling"]

TRUSTS: tuple[Trust, ...] = ("site", "secure-aggregation", "server")
"""From the least trust in others to the most."""
UNITS: tuple[Unit, ...] = ("site", "patient", "image")
"""From the most that is protected to the least."""
METHODS: tuple[Method, ...] = ("gradient", "averaging", "one-shot")
LARGEST_EPSILON = 8.0
"""What the planner goes to where nobody set a limit."""
RATES = (1.0, 0.5, 0.2, 0.1, 0.05)
"""Sampling rates that are compared."""
GAIN = 0.001
"""A sampling rate that raises nu by no more than this part gains nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to train: whom the guarantee protects, whom one trusts, what is trained, how, and on what share.

    Attributes:
        unit: whom the guarantee protects.
        trust: who could see an un-noised sum.
        recipe: the network and the method.
        sampling_rate: the chance of a unit to take part in a step, in as many passes over all units as the study
            makes; None as the study has it.
    """

    unit: Unit
    trust: Trust
    recipe: Recipe
    sampling_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Rounds that each take a share of the units, and the signal-to-noise ratio of all of them together."""

    rate: float
    rounds: int
    noise_multiplier: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a consortium has and wants.

    Attributes:
        cohorts: training patients of each hospital.
        images: training images of a patient, on average; what the unit "image" counts.
        units: whom the guarantee may protect.
        trusts: the levels of trust that would be accepted.
        recipes: what may be trained and how, preferred first.
        epsilon: the largest epsilon.
        auroc: the smallest AUROC.
        balanced_accuracy: the smallest balanced accuracy.
        risk: the most that an attacker may find at 1 % false positives.
        metric: what settings are compared by; default what a target is given for, AUROC before balanced accuracy.
        study: where everything else comes from: delta, rounds, sampling, clip norm, shares of the budget.
        measured: the study that accuracy was measured with.
    """

    cohorts: tuple[int, ...]
    images: float = 1.0
    units: tuple[Unit, ...] = ("patient",)
    trusts: tuple[Trust, ...] = TRUSTS
    recipes: tuple[Recipe, ...] = (Recipe(), Recipe(method="one-shot"))
    epsilon: float | None = None
    auroc: float | None = None
    balanced_accuracy: float | None = None
    risk: float | None = None
    metric: Metric | None = None
    study: Study = field(default_factory=Study)
    measured: Study = field(default_factory=Study)

    def __post_init__(self) -> None:
        if not self.cohorts or min(self.cohorts) < 1:
            raise InvalidValue(
                f"cohorts are {', '.join(map(str, self.cohorts)) or 'none'}",
                "every hospital has a patient or more",
                "list the number of training patients of each hospital",
            )
        bounds = {
            "epsilon": (0.0, math.inf),
            "auroc": (0.5, 1.0),
            "balanced_accuracy": (0.5, 1.0),
            "risk": (0.01, 1.0),
            "images": (1 - 1e-9, math.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise InvalidValue(
                    f"{name.replace('_', ' ')} is {value:g}",
                    f"it must lie between {low:g} and {high:g}",
                    "choose another",
                )
        if not any(True for _ in self.ways()):
            raise self._nothing_possible()

    def _nothing_possible(self) -> InvalidValue:
        """Why no way is left: the hospitals are too few, or what the study says fits no recipe."""
        for recipe in self.recipes:
            try:
                variant(self.study, recipe, self.units[0])
            except StudyError as error:
                return InvalidValue(
                    f"{recipe} does not fit the study: {error.found}", error.rule, error.remedy
                )
        return InvalidValue(
            f"unit {', '.join(self.units)}, trust {', '.join(self.trusts)} and method "
            f"{', '.join(map(str, self.recipes))} do not go together for {len(self.cohorts)} hospitals",
            "secure aggregation needs 3 or more hospitals, one-shot protects patients or images, and averaging that "
            "protects whole hospitals takes all of them",
            "accept more of each",
        )

    def ways(self) -> Iterator[Configuration]:
        """What is accepted and possible: most protection first, then least trust."""
        trusts = [
            one
            for one in TRUSTS
            if one in self.trusts and (one != "secure-aggregation" or len(self.cohorts) >= 3)
        ]
        for unit in (one for one in UNITS if one in self.units):
            possible = [one for one in self.recipes if self.fits(one, unit)]
            for trust in trusts:
                for recipe in possible:
                    yield Configuration(unit=unit, trust=trust, recipe=recipe)

    def fits(self, recipe: Recipe, unit: Unit) -> bool:
        """Whether what the study says goes together with a recipe and a unit."""
        try:
            study = variant(self.study, recipe, unit)
        except StudyError:
            return False
        # Sites take all local steps of a round, or none: see `fedveil.federation.queries.LocalStepsQuery`.
        return recipe.method != "averaging" or unit != "site" or study.training.sampling_rate == 1

    @property
    def patients(self) -> int:
        """All hospitals together."""
        return sum(self.cohorts)

    def count(self, unit: Unit) -> float:
        """N: how many units there are."""
        match unit:
            case "site":
                return len(self.cohorts)
            case "patient":
                return self.patients
            case "image":
                return self.images * self.patients

    @property
    def limit(self) -> float:
        """The largest epsilon that the wishes allow."""
        limits = [LARGEST_EPSILON] if self.epsilon is None and self.risk is None else []
        if self.epsilon is not None:
            limits.append(self.epsilon)
        if self.risk is not None:
            mu = float(ndtri(self.risk) - ndtri(0.01))
            limits.append(epsilon([Mechanism(1 / mu, 1.0, 1)], self.study.privacy.delta))
        return min(limits)

    @property
    def ranked(self) -> Metric:
        """What settings are compared by."""
        by_threshold = self.balanced_accuracy is not None and self.auroc is None
        return self.metric or ("balanced-accuracy" if by_threshold else "auroc")

    @property
    def targets(self) -> dict[Metric, float]:
        """The accuracies that are asked for."""
        asked: dict[Metric, float | None]
        asked = {"auroc": self.auroc, "balanced-accuracy": self.balanced_accuracy}
        return {metric: value for metric, value in asked.items() if value is not None}

    def study_of(self, way: Configuration, target: float) -> Study:
        """The study that trains this way at a target epsilon."""
        study = variant(self.study, way.recipe, way.unit)
        training: dict[str, object] = {}
        if way.sampling_rate is not None:
            passes = study.training.rounds * study.training.sampling_rate
            training |= {"sampling_rate": way.sampling_rate, "rounds": round(passes / way.sampling_rate)}
        averaging = way.recipe.method == "averaging" and way.unit != "site"
        if averaging or (study.privacy.personal_share > 0 and study.training.units is None):
            training["units"] = round(self.count(way.unit))
        return study.with_changes(
            {"training": training, "privacy": {"unit": way.unit, "trust": way.trust, "epsilon": target}}
        )

    def agreement(self, way: Configuration, target: float) -> Agreement:
        """What the hospitals of a run at this epsilon would be asked to admit.

        Raises:
            FedveilError: such a run is impossible.
        """
        return _agreement(self.study_of(way, target), len(self.cohorts))

    def mu(self, way: Configuration, target: float) -> float:
        """mu of the Gaussian mechanism that epsilon and delta allow in total."""
        guarantee = Guarantee(target, self.study.privacy.delta, way.unit, way.trust)
        return 1 / calibrate(guarantee, steps=1).noise_multiplier

    def left(self, way: Configuration, target: float) -> float:
        """Part of mu squared that is left for the sums that the model is made from, beside single full sums."""
        agreement = self.agreement(way, target)
        others = [one.mechanism for one in agreement.releases if one is not agreement.main]
        taken = sum(one.steps / one.noise_multiplier**2 for one in others if one.sampling_rate == 1)
        return 1 - taken / self.mu(way, target) ** 2

    def steps_beside(self, way: Configuration, target: float) -> int:
        """How many more steps of the mechanism of training other sums are, where a network samples."""
        agreement = self.agreement(way, target)
        others = [one.mechanism for one in agreement.releases if one is not agreement.main]
        return sum(one.steps for one in others if one.sampling_rate < 1)

    def ratio(self, way: Configuration, target: float) -> float:
        """nu at a target epsilon, see `fedveil.learning.step_size`; 0 where a run is impossible."""
        try:
            return signal_to_noise(self.agreement(way, target), self.count(way.unit))
        except InvalidValue:
            return 0.0

    def samplings(self, way: Configuration, target: float) -> tuple[Sampling, ...]:
        """The ratio at several sampling rates in as many passes over the units; empty where the law fixes the rate.

        It does for all but a linear head, whose steps are as long as the noise allows at any number of rounds. Others
        have steps of a fixed size; and a network that samples pays for its statistics like for a step, so that another
        rate would be another split of the budget.
        """
        study = self.study_of(way, target)
        privacy = study.privacy
        full = max(privacy.personal_share, privacy.personal_calibration_share) > 0
        if way.recipe != Recipe() or full:  # which go with full participation only
            return ()
        found = []
        for rate in sorted({*RATES, study.training.sampling_rate}, reverse=True):
            sampled = replace(way, sampling_rate=rate)
            one = self.agreement(sampled, target).main
            found.append(
                Sampling(
                    rate=rate,
                    rounds=one.rounds,
                    noise_multiplier=one.mechanism.noise_multiplier,
                    ratio=self.ratio(sampled, target),
                )
            )
        return tuple(found)

    def best_sampling(self, way: Configuration, target: float) -> Configuration:
        """The way at the sampling rate with the largest ratio, or at a larger rate that is as good in fewer rounds.

        A study that samples already is left as it is.
        """
        found = self.samplings(way, target)
        if not found or self.study_of(way, target).training.sampling_rate < 1:
            return way
        enough = max(one.ratio for one in found) * (1 - GAIN)
        best = min((one for one in found if one.ratio >= enough), key=lambda one: one.rounds)
        rate = None if best.rate == 1 else best.rate
        return replace(way, sampling_rate=rate)

    def settings(self, way: Configuration, target: float) -> dict[str, dict[str, object]]:
        """The keys of a study file that choose this way, and those of the given study that its noise depends on."""
        study = self.study_of(way, target)
        shown = {
            "model": ["network"],
            "training": ["method"],
            "privacy": ["unit", "trust", "epsilon", "delta"],
        }
        if way.recipe.method != "one-shot":
            shown["training"] += ["rounds", "sampling_rate"]
            shown["privacy"] += ["clip_norm"]
        if way.recipe.method == "averaging":
            shown["training"] += ["local_steps"]
        own, values = own_settings(study), study.model_dump(mode="json")
        tables = ("model", "training", "privacy", "federation")
        keys = {table: dict.fromkeys([*shown.get(table, ()), *own[table]]) for table in tables}
        return {table: {key: values[table][key] for key in keys[table]} for table in tables if keys[table]}

    def changed(self, way: Configuration) -> list[str]:
        """Keys by which the given study trains otherwise than the one that was measured, where accuracy hangs on them.

        A linear head's steps follow a rule, under which rounds and clip norm hardly matter.
        """
        mine, theirs = self.study_of(way, 1.0), variant(self.measured, way.recipe, way.unit)
        keys = [("model", key) for key in type(mine.model).model_fields]
        if way.recipe.network != "linear":
            keys += [("training", key) for key in type(mine.training).model_fields if key != "units"]
            keys += [("privacy", "clip_norm")]
        return [
            f"{table}.{key}"
            for table, key in keys
            if getattr(getattr(mine, table), key) != getattr(getattr(theirs, table), key)
        ]


@lru_cache(maxsize=1024)
def _agreement(study: Study, sites: int) -> Agreement:
    """The terms of a study between so many hospitals, as an offer makes them: no image is known."""
    names = [f"hospital-{number}" for number in range(1, sites + 1)]
    model = _model(study.model, study.training.method, study.study.seed, study.data.image_size)
    return make_agreement(study, sites=names, model=model)


@lru_cache(maxsize=32)
def _model(settings: ModelSettings, method: Method, seed: int, image_size: int) -> Model:
    """A model of two classes of grey images, where nothing is known of them: what noise depends on is its size."""
    study = Study(
        study=StudySettings(seed=seed),
        data=DataSettings(image_size=image_size),
        model=settings,
        training=TrainingSettings(method=method),
    )
    return model_of(study, Dataset.empty(("no", "yes"), channels=1, image_size=image_size))
