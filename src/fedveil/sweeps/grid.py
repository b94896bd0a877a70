"""The settings of a sweep, and what each of them measured.

A `Grid` is a few lists; its settings are their product with duplicates taken out: without privacy it does not matter
whom one trusts. A `Measurement` is one trained model, judged on the test images; of hospitals that are each alone it
is the mean over their models.
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
"""The alpha of hospitals that are all alike: the limit of Dirichlet shares."""
NAMED = 0.0
"""The alpha of hospitals that the data names: nothing was dealt out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of a sweep.

    Attributes:
        epsilon: the target; `NO_PRIVACY` for none.
        trust: who could see an un-noised sum.
        unit: whom the guarantee protects.
        sites: number of hospitals.
        alpha: how alike simulated ones are; `EVEN` deals patients out evenly, `NAMED` is for those of the data.
        method: how the model is trained.
        patients: training patients that are used, drawn at random; None for all.
        seed: of that draw and of the split into hospitals, added to the study's; never of noise.
        arrangement: whether hospitals train together; if not, whom one trusts follows from it.
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
        """The study at this setting; how many of simulated sites a round needs follows from their number.

        A method that is not the study's own has the defaults of that method. A public number of units that the study
        states is no larger than that of the patients.
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
        """How patients are dealt out, as a study says it."""
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
        """The setting whose training is the same as this one's: what makes no difference to it has one value.

        Without privacy it does not matter whom one trusts; where all images lie in one place there are no hospitals,
        and without privacy nothing is left to chance there.
        """
        private = self.trust != "none" and not math.isinf(self.epsilon)
        trust = trusted_in(self.arrangement, self.trust)
        one = replace(self, trust=trust) if private else replace(self, epsilon=NO_PRIVACY, trust="none")
        if self.arrangement != "pooled":
            return one
        chance = private or self.patients is not None
        return replace(one, sites=1, alpha=EVEN, seed=self.seed if chance else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for infinite."""
        return asdict(self) | {"epsilon": _plain(self.epsilon), "alpha": _plain(self.alpha)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        infinite = {name: math.inf for name in ("epsilon", "alpha") if values[name] is None}
        return cls(**(values | infinite))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The lists whose product is swept; see `Setting` for what they mean.

    With ``baselines`` every setting is also measured with all images in one place and with each hospital alone, and all
    three without privacy.

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
                raise InvalidValue(f"{field.name} is empty", "a sweep needs a value of each", "name one")
        if any(not epsilon > 0 for epsilon in self.epsilon):
            raise InvalidValue(
                f"epsilon is {min(self.epsilon):g}", "it must be positive", 'give numbers, or "none"'
            )
        if any(not alpha > 0 for alpha in self.alpha):
            raise InvalidValue(
                f"alpha is {min(self.alpha):g}", "it must be positive", 'give numbers, or "iid"'
            )
        if self.seeds < 1:
            raise InvalidValue(
                f"seeds is {self.seeds}", "every setting is run once or more", "give 1 or more"
            )
        if "secure-aggregation" in self.trust and min(self.sites) < 3:
            raise InvalidValue(
                f"sites is {min(self.sites)} with trust secure-aggregation",
                "with fewer than 3 sites, one learns the other's sum from the total",
                "sweep 3 or more sites, or other levels of trust",
            )
        if self.baselines and "site" in self.unit:
            raise InvalidValue(
                "unit is site, and baselines are asked for",
                "where all images lie in one place, or a hospital is alone, there is no hospital to hide among others",
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
    """What one setting gave.

    Attributes:
        setting: the setting.
        units: training units over all sites.
        patients: training patients over all sites.
        ratio: signal-to-noise ratio nu of training, see `fedveil.learning.step_size`; infinite without noise. The mean
            over hospitals that are each alone.
        epsilon_spent: what all releases cost together; infinite without privacy. The largest of hospitals alone.
        true_positive_rate: the most that any membership attack finds at 1 % false positives.
        advantage: the largest difference of its true and false positive rates.
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
        """Plain values for JSON; None stands for infinite."""
        infinite = {name: _plain(getattr(self, name)) for name in ("ratio", "epsilon_spent")}
        return asdict(self) | infinite | {"setting": self.setting.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        infinite = {name: math.inf for name in ("ratio", "epsilon_spent") if values[name] is None}
        return cls(**(values | infinite | {"setting": Setting.from_dict(values["setting"])}))


def _plain(value: float) -> float | None:
    return None if math.isinf(value) else value
