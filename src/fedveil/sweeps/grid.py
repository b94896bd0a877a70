"""The settings of a sweep, and the measurement of each.

A `Grid` is a few lists; its settings are their product with duplicates taken out: without privacy, trust does not
matter. A `Measurement` is one trained model, evaluated on the test images; for hospitals that each train alone it is
the mean over their models.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self, get_args

from fedveil.errors import InvalidValue
from fedveil.privacy import Trust, Unit
from fedveil.study.arrangement import Arrangement, trusted_in
from fedveil.study.recipes import Method, Metric, Recipe, variant
from fedveil.study.settings.schema import Study

__all__ = ["EVEN", "NAMED", "NO_PRIVACY", "Grid", "Measurement", "Method", "Setting"]

NO_PRIVACY = math.inf
"""The epsilon of a study without privacy."""
EVEN = math.inf
"""The alpha of equal hospitals: the limit of Dirichlet shares."""
NAMED = 0.0
"""The alpha of hospitals that the data names: patients were not split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of a sweep.

    Attributes:
        epsilon: the target; `NO_PRIVACY` for none.
        trust: who could see an un-noised sum.
        unit: whom the guarantee protects.
        sites: number of hospitals.
        alpha: similarity of simulated ones; `EVEN` splits patients evenly, `NAMED` is for hospitals in the data.
        method: how the model is trained.
        patients: number of training patients, drawn at random; None for all.
        seed: of that draw and of the split into hospitals, added to the study's; never of noise.
        arrangement: whether hospitals train together; if not, it determines the trust level.
    """

    epsilon: float
    trust: Trust
    unit: Unit
    sites: int
    alpha: float
    method: Method = "gradient"
    patients: int | None = None
    seed: int = 0
    arrangement: Arrangement = "federated"

    def study(self, base: Study) -> Study:
        """The study at this setting; the number of simulated sites that a round needs follows from their number.

        A method other than the study's has the defaults of that method. If the study states a public number of
        units, it is capped at the number of patients.
        """
        study = variant(base, Recipe(network=base.model.network, method=self.method), self.unit)
        private, training, stated = self.trust != "none", {}, study.training.units
        if stated is not None and self.patients is not None and self.unit == "patient":
            training["units"] = min(stated, self.patients)
        return study.with_changes(
            {
                "data": {"sites": base.data.sites.model_dump() | self._dealt(base)},
                "training": training,
                "privacy": {"trust": self.trust} | ({"epsilon": self.epsilon} if private else {}),
                "federation": {} if self.alpha == NAMED else {"min_sites": None, "min_honest": None},
            }
        )

    def _dealt(self, base: Study) -> dict[str, object]:
        """The study's settings for splitting patients among sites."""
        if self.alpha == NAMED:
            return {}
        if math.isinf(self.alpha):
            return {"count": self.sites, "scheme": "iid"}
        scheme = base.data.sites.scheme
        return {
            "count": self.sites,
            "scheme": "dirichlet" if scheme == "iid" else scheme,
            "alpha": self.alpha,
        }

    @property
    def distinct(self) -> Self:
        """The canonical setting with the same training: a value that has no effect is replaced by one default.

        Without privacy, trust does not matter. If all images are pooled there are no hospitals, and without privacy
        the training is then deterministic.
        """
        private = self.trust != "none" and not math.isinf(self.epsilon)
        trust = trusted_in(self.arrangement, self.trust)
        one = replace(self, trust=trust) if private else replace(self, epsilon=NO_PRIVACY, trust="none")
        if self.arrangement != "pooled":
            return one
        chance = private or self.patients is not None
        return replace(one, sites=1, alpha=EVEN, seed=self.seed if chance else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for infinity."""
        return asdict(self) | {"epsilon": _plain(self.epsilon), "alpha": _plain(self.alpha)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        infinite = {name: math.inf for name in ("epsilon", "alpha") if values[name] is None}
        return cls(**(values | infinite))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The lists whose product is swept; see `Setting` for what they mean.

    With ``baselines`` every setting is also measured with pooled images and with each hospital alone, and all three
    without privacy.

    >>> grid = Grid(epsilon=(1.0, NO_PRIVACY), trust=("site", "server"), unit=("patient",), sites=(3, 5), alpha=(0.5,))
    >>> len(grid.settings())
    6
    """

    epsilon: tuple[float, ...]
    trust: tuple[Trust, ...]
    unit: tuple[Unit, ...]
    sites: tuple[int, ...]
    alpha: tuple[float, ...]
    method: tuple[Method, ...] = ("gradient",)
    patients: tuple[int | None, ...] = (None,)
    seeds: int = 1
    baselines: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name not in ("seeds", "baselines") and not getattr(self, field.name):
                raise InvalidValue(
                    f"{field.name} is empty", "a sweep needs at least one value of each", "name one"
                )
        if any(not epsilon > 0 for epsilon in self.epsilon):
            raise InvalidValue(
                f"epsilon is {min(self.epsilon):g}", "it must be positive", 'give numbers, or "none"'
            )
        if any(not alpha > 0 for alpha in self.alpha):
            raise InvalidValue(
                f"alpha is {min(self.alpha):g}", "it must be positive", 'give numbers, or "iid"'
            )
        if self.seeds < 1:
            raise InvalidValue(f"seeds is {self.seeds}", "every setting runs at least once", "give 1 or more")
        if "secure-aggregation" in self.trust and min(self.sites) < 3:
            raise InvalidValue(
                f"sites is {min(self.sites)} with trust secure-aggregation",
                "with fewer than 3 sites, one learns the other's sum from the total",
                "sweep 3 or more sites, or other levels of trust",
            )
        if self.baselines and "site" in self.unit:
            raise InvalidValue(
                "unit is site, and baselines are asked for",
                "if images are pooled, or a hospital is alone, no hospital can be protected among others",
                "compare per patient or per image",
            )

    def settings(self) -> list[Setting]:
        """Every setting once, in the order of the lists."""
        return list(dict.fromkeys(self._product()))

    def _product(self) -> Iterator[Setting]:
        axes = {field.name: getattr(self, field.name, ()) for field in fields(Setting)}
        axes |= {"seed": range(self.seeds), "arrangement": ("federated",)}
        if self.baselines:
            axes["arrangement"] = get_args(Arrangement)
            axes["epsilon"] = (*self.epsilon, NO_PRIVACY)
        for values in itertools.product(*axes.values()):
            yield Setting(**dict(zip(axes, values, strict=True))).distinct


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The result of one setting.

    Attributes:
        setting: the setting.
        units: training units over all sites.
        patients: training patients over all sites.
        ratio: signal-to-noise ratio nu of training, see `fedveil.learning.step_size`; infinite without noise. For
            hospitals that each train alone, the mean.
        epsilon_spent: of all releases together; infinite without privacy. For hospitals that each train alone, the
            largest.
        true_positive_rate: bound on any membership attack's true positive rate at 1 % false positives.
        advantage: bound on the difference of its true and false positive rates.
        auroc: on the test images.
        balanced_accuracy: on the test images.
        seconds: processor time of training.
    """

    setting: Setting
    units: int
    patients: int
    ratio: float
    epsilon_spent: float
    true_positive_rate: float
    advantage: float
    auroc: float
    balanced_accuracy: float
    seconds: float

    def value(self, metric: Metric) -> float:
        """The accuracy by this metric."""
        return self.auroc if metric == "auroc" else self.balanced_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for infinity."""
        infinite = {name: _plain(getattr(self, name)) for name in ("ratio", "epsilon_spent")}
        return asdict(self) | infinite | {"setting": self.setting.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        infinite = {name: math.inf for name in ("ratio", "epsilon_spent") if values[name] is None}
        return cls(**(values | infinite | {"setting": Setting.from_dict(values["setting"])}))


def _plain(value: float) -> float | None:
    return None if math.isinf(value) else value
