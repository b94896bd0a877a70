"""What a consortium has and would accept, and the noise that each training configuration needs.

A `Configuration` is a privacy unit, a trust level, a model and a method. Its noise is that of the agreement of a run
between this number of hospitals. The agreement follows from the study and an empty data set, so no patient data is
needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from fedveil.data import Dataset
from fedveil.errors import InvalidValue, StudyError
from fedveil.federation import Agreement
from fedveil.lazy import later
from fedveil.learning import Model
from fedveil.privacy import Guarantee, Mechanism, Trust, Unit, calibrate, epsilon
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import model_of
from fedveil.study.recipes import Method, Metric, Recipe, own_settings, variant
from fedveil.study.settings.schema import DataSettings, ModelSettings, Study, StudySettings, TrainingSettings
from fedveil.study.steps import signal_to_noise

__all__ = ["METHODS", "TRUSTS", "UNITS", "Configuration", "PlanRequest", "Sampling"]

special = later("scipy.special")

TRUSTS: tuple[Trust, ...] = ("site", "secure-aggregation", "server")
"""From the least trust in others to the most."""
UNITS: tuple[Unit, ...] = ("site", "patient", "image")
"""From the strongest protection to the weakest."""
METHODS: tuple[Method, ...] = ("gradient", "averaging", "one-shot")
LARGEST_EPSILON = 8.0
"""The largest epsilon that the planner considers if no limit was set."""
TOLERANCE = 0.01
"""The accuracy that a recommendation without any wish may lose against the same model without privacy."""
RATES = (1.0, 0.5, 0.2, 0.1, 0.05)
"""The compared sampling rates."""
GAIN = 0.001
"""A sampling rate that raises nu by no more than this fraction counts as no gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One configuration of training: privacy unit, trust level, model, method and sampling rate.

    Attributes:
        unit: whom the guarantee protects.
        trust: who could see an un-noised sum.
        recipe: the network and the method.
        sampling_rate: the probability that a unit takes part in a step, with as many passes over all units as in the
            study; None for the study's own rate.
    """

    unit: Unit
    trust: Trust
    recipe: Recipe
    sampling_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Rounds that each use a share of the units, and the signal-to-noise ratio of all of them together."""

    rate: float
    rounds: int
    noise_multiplier: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a consortium has and wants.

    Attributes:
        cohorts: training patients of each hospital.
        images: mean number of training images per patient, for the unit "image".
        units: the accepted privacy units.
        trusts: the accepted trust levels.
        recipes: the accepted models and methods, preferred first.
        epsilon: the largest accepted epsilon.
        auroc: the smallest accepted AUROC.
        balanced_accuracy: the smallest accepted balanced accuracy.
        risk: the largest accepted true positive rate of an attack at 1 % false positives.
        metric: what settings are compared by; default the metric that has a target, AUROC before balanced accuracy.
        tolerance: the loss of accuracy against the same model without privacy that is accepted for less epsilon;
            default `TOLERANCE` if neither an epsilon, a risk nor an accuracy is requested.
        study: the source of everything else: delta, rounds, sampling, clip norm, shares of the budget.
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
    tolerance: float | None = None
    study: Study = field(default_factory=Study)
    measured: Study = field(default_factory=Study)

    def __post_init__(self) -> None:
        if not self.cohorts or min(self.cohorts) < 1:
            raise InvalidValue(
                f"cohorts are {', '.join(map(str, self.cohorts)) or 'none'}",
                "every hospital must have at least one patient",
                "list the number of training patients of each hospital",
            )
        bounds = {
            "epsilon": (0.0, math.inf),
            "auroc": (0.5, 1.0),
            "balanced_accuracy": (0.5, 1.0),
            "risk": (0.01, 1.0),
            "images": (1 - 1e-9, math.inf),
            "tolerance": (0.0, 0.5),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise InvalidValue(
                    f"{name.replace('_', ' ')} is {value:g}",
                    f"it must lie between {low:g} and {high:g}",
                    "choose another",
                )
        if not any(True for _ in self.configurations()):
            raise self._nothing_possible()

    def _nothing_possible(self) -> InvalidValue:
        """The error if no configuration is possible: too few hospitals, or the study's settings fit no recipe."""
        for recipe in self.recipes:
            try:
                variant(self.study, recipe, self.units[0])
            except StudyError as error:
                return InvalidValue(
                    f"{recipe} does not fit the study: {error.found}", error.rule, error.remedy
                )
        return InvalidValue(
            f"unit {', '.join(self.units)}, trust {', '.join(self.trusts)} and method "
            f"{', '.join(map(str, self.recipes))} cannot be combined for {len(self.cohorts)} hospitals",
            "secure aggregation needs 3 or more hospitals, one-shot protects patients or images, and averaging that "
            "protects whole hospitals needs all of them in every round",
            "accept more options of each",
        )

    def configurations(self) -> Iterator[Configuration]:
        """The accepted and possible configurations: strongest unit first, then least trust."""
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
        """Whether the study's settings are compatible with a recipe and a unit."""
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
        """N, the number of units."""
        match unit:
            case "site":
                return len(self.cohorts)
            case "patient":
                return self.patients
            case "image":
                return self.images * self.patients

    @property
    def limit(self) -> float:
        """The largest epsilon that the plan request allows."""
        limits = [LARGEST_EPSILON] if self.epsilon is None and self.risk is None else []
        if self.epsilon is not None:
            limits.append(self.epsilon)
        if self.risk is not None:
            mu = float(special.ndtri(self.risk) - special.ndtri(0.01))
            limits.append(epsilon([Mechanism(1 / mu, 1.0, 1)], self.study.privacy.delta))
        return min(limits)

    @property
    def loss(self) -> float | None:
        """The accepted loss of accuracy against no privacy; None if all of the limit is used, or a target is met."""
        wishes = (self.epsilon, self.risk, self.auroc, self.balanced_accuracy)
        return TOLERANCE if self.tolerance is None and wishes == (None,) * 4 else self.tolerance

    @property
    def ranked(self) -> Metric:
        """The metric that settings are compared by."""
        by_threshold = self.balanced_accuracy is not None and self.auroc is None
        return self.metric or ("balanced-accuracy" if by_threshold else "auroc")

    @property
    def targets(self) -> dict[Metric, float]:
        """The requested accuracies."""
        asked: dict[Metric, float | None]
        asked = {"auroc": self.auroc, "balanced-accuracy": self.balanced_accuracy}
        return {metric: value for metric, value in asked.items() if value is not None}

    def study_of(self, configuration: Configuration, target: float) -> Study:
        """The study that trains with this configuration at a target epsilon."""
        study = variant(self.study, configuration.recipe, configuration.unit)
        training: dict[str, object] = {}
        if configuration.sampling_rate is not None:
            passes = study.training.rounds * study.training.sampling_rate
            training |= {
                "sampling_rate": configuration.sampling_rate,
                "rounds": round(passes / configuration.sampling_rate),
            }
        averaging = configuration.recipe.method == "averaging" and configuration.unit != "site"
        if averaging or (study.privacy.personal_share > 0 and study.training.units is None):
            training["units"] = round(self.count(configuration.unit))
        return study.with_changes(
            {
                "training": training,
                "privacy": {"unit": configuration.unit, "trust": configuration.trust, "epsilon": target},
            }
        )

    def agreement(self, configuration: Configuration, target: float) -> Agreement:
        """What the hospitals of a run at this epsilon would be asked to approve.

        Raises:
            FedveilError: such a run is impossible.
        """
        return _agreement(self.study_of(configuration, target), len(self.cohorts))

    def mu(self, configuration: Configuration, target: float) -> float:
        """mu of the Gaussian mechanism that epsilon and delta allow in total."""
        guarantee = Guarantee(target, self.study.privacy.delta, configuration.unit, configuration.trust)
        return 1 / calibrate(guarantee, steps=1).noise_multiplier

    def left(self, configuration: Configuration, target: float) -> float:
        """The fraction of mu squared left for the sums that the model is made from, after single full sums."""
        agreement = self.agreement(configuration, target)
        others = [one.mechanism for one in agreement.releases if one is not agreement.main]
        taken = sum(one.steps / one.noise_multiplier**2 for one in others if one.sampling_rate == 1)
        return 1 - taken / self.mu(configuration, target) ** 2

    def steps_beside(self, configuration: Configuration, target: float) -> int:
        """The number of additional training steps that other sums count as, for a network that samples."""
        agreement = self.agreement(configuration, target)
        others = [one.mechanism for one in agreement.releases if one is not agreement.main]
        return sum(one.steps for one in others if one.sampling_rate < 1)

    def ratio(self, configuration: Configuration, target: float) -> float:
        """nu at a target epsilon, see `fedveil.learning.step_size`; 0 where a run is impossible."""
        try:
            return signal_to_noise(self.agreement(configuration, target), self.count(configuration.unit))
        except InvalidValue:
            return 0.0

    def samplings(self, configuration: Configuration, target: float) -> tuple[Sampling, ...]:
        """The ratio at several sampling rates with equally many passes over the units; empty if the law fixes the rate.

        It fixes the rate for everything but a linear head, whose steps are as long as the noise allows at any number
        of rounds. Others have steps of a fixed size. A network that samples pays for its statistics as for a step,
        so another rate would mean another split of the budget.
        """
        study = self.study_of(configuration, target)
        privacy = study.privacy
        full = max(privacy.personal_share, privacy.personal_calibration_share) > 0
        if configuration.recipe != Recipe() or full:  # which require full participation
            return ()
        found = []
        for rate in sorted({*RATES, study.training.sampling_rate}, reverse=True):
            sampled = replace(configuration, sampling_rate=rate)
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

    def best_sampling(self, configuration: Configuration, target: float) -> Configuration:
        """The configuration at the sampling rate with the largest ratio, or at a larger rate that is as good in
        fewer rounds.

        A study that samples already is left as it is.
        """
        found = self.samplings(configuration, target)
        if not found or self.study_of(configuration, target).training.sampling_rate < 1:
            return configuration
        enough = max(one.ratio for one in found) * (1 - GAIN)
        best = min((one for one in found if one.ratio >= enough), key=lambda one: one.rounds)
        rate = None if best.rate == 1 else best.rate
        return replace(configuration, sampling_rate=rate)

    def settings(self, configuration: Configuration, target: float) -> dict[str, dict[str, object]]:
        """The study-file keys that select this configuration, and those of the given study that its noise depends
        on."""
        study = self.study_of(configuration, target)
        shown = {
            "model": ["network"],
            "training": ["method"],
            "privacy": ["unit", "trust", "epsilon", "delta"],
        }
        if configuration.recipe.method != "one-shot":
            shown["training"] += ["rounds", "sampling_rate"]
            shown["privacy"] += ["clip_norm"]
        if configuration.recipe.method == "averaging":
            shown["training"] += ["local_steps"]
        own, values = own_settings(study), study.model_dump(mode="json")
        tables = ("model", "training", "privacy", "federation")
        keys = {table: dict.fromkeys([*shown.get(table, ()), *own[table]]) for table in tables}
        return {table: {key: values[table][key] for key in keys[table]} for table in tables if keys[table]}

    def changed(self, configuration: Configuration) -> list[str]:
        """Keys in which the given study differs from the measured one, if accuracy depends on them.

        A linear head's steps follow a rule that makes rounds and clip norm nearly irrelevant.
        """
        mine, theirs = (
            self.study_of(configuration, 1.0),
            variant(self.measured, configuration.recipe, configuration.unit),
        )
        keys = [("model", key) for key in type(mine.model).model_fields]
        if configuration.recipe.network != "linear":
            keys += [("training", key) for key in type(mine.training).model_fields if key != "units"]
            keys += [("privacy", "clip_norm")]
        return [
            f"{table}.{key}"
            for table, key in keys
            if getattr(getattr(mine, table), key) != getattr(getattr(theirs, table), key)
        ]


@lru_cache(maxsize=1024)
def _agreement(study: Study, sites: int) -> Agreement:
    """The agreement of a study between this number of hospitals, built as for an offer: without any image."""
    names = [f"hospital-{number}" for number in range(1, sites + 1)]
    model = _model(
        study.model, study.training.method, study.study.seed, study.data.image_size, study.data.slices
    )
    return make_agreement(study, sites=names, model=model)


@lru_cache(maxsize=32)
def _model(settings: ModelSettings, method: Method, seed: int, image_size: int, slices: int | None) -> Model:
    """A model for two classes of grey images if nothing is known about them: noise depends only on its size."""
    study = Study(
        study=StudySettings(seed=seed),
        data=DataSettings(image_size=image_size, slices=slices),
        model=settings,
        training=TrainingSettings(method=method),
    )
    return model_of(study, Dataset.empty(("no", "yes"), channels=1, image_size=image_size))
