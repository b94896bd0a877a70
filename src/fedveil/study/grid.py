"""The settings of a sweep, and what each of them measured.

A `Grid` is a few lists; its settings are their product with duplicates taken out: without privacy it does not matter
whom one trusts. A `Measurement` is one trained model, judged on the test images.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from fedveil.errors import InvalidValue
from fedveil.privacy import Trust, Unit
from fedveil.study.recipes import Method, Metric, Recipe, variant
from fedveil.study.settings import Study

__all__ = ["EVEN", "NO_PRIVACY", "Grid", "Measurement", "Method", "Setting"]

NO_PRIVACY = math.inf
"""The epsilon of a study without privacy."""
EVEN = math.inf
"""The alpha of hospitals that are all alike: the limit of Dirichlet shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of a sweep.

    Attributes:
        epsilon: the target; `NO_PRIVACY` for none.
        trust: who could see an un-noised sum.
        unit: whom the guarantee protects.
        sites: number of simulated hospitals.
        alpha: how alike they are; `EVEN` deals patients out evenly.
        method: how the model is trained.
        patients: training patients that are used, drawn at random; None for all.
        seed: of that draw and of the split into hospitals, added to the study's; never of noise.
    """

    epsilon: float
    trust: Trust
    unit: Unit
    sites: int
    alpha: float
    method: Method = "gradient"
    patients: int | None = None
    seed: int = 0

    def study(self, base: Study) -> Study:
        """The study at this setting; how many sites a round needs follows from their number.

        A method that is not the study's own has the defaults of that method. A public number of units that the study
        states is no larger than that of the patients.
        """
        study = variant(base, Recipe(network=base.model.network, method=self.method), self.unit)
        scheme = "iid" if math.isinf(self.alpha) else base.data.sites.scheme
        skewed = "dirichlet" if scheme == "iid" and not math.isinf(self.alpha) else scheme
        sites: dict[str, object] = {"count": self.sites, "scheme": skewed}
        if not math.isinf(self.alpha):
            sites["alpha"] = self.alpha
        private, training, stated = self.trust != "none", {}, study.training.units
        if stated is not None and self.patients is not None and self.unit == "patient":
            training["units"] = min(stated, self.patients)
        return study.with_changes(
            {
                "data": {"sites": base.data.sites.model_dump() | sites},
                "training": training,
                "privacy": {"trust": self.trust} | ({"epsilon": self.epsilon} if private else {}),
                "federation": {"min_sites": None, "min_honest": None},
            }
        )

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

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "seeds" and not getattr(self, field.name):
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

    def settings(self) -> list[Setting]:
        """Every setting once, in the order of the lists."""
        return list(dict.fromkeys(self._product()))

    def _product(self) -> Iterator[Setting]:
        names = [field.name for field in fields(Setting)]
        axes = [range(self.seeds) if name == "seed" else getattr(self, name) for name in names]
        for values in itertools.product(*axes):
            setting = Setting(**dict(zip(names, values, strict=True)))
            private = setting.trust != "none" and not math.isinf(setting.epsilon)
            yield setting if private else replace(setting, epsilon=NO_PRIVACY, trust="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one setting gave.

    Attributes:
        setting: the setting.
        units: training units over all sites.
        patients: training patients over all sites.
        ratio: signal-to-noise ratio nu of training, see `fedveil.study.rules`; infinite without noise.
        epsilon_spent: what all releases cost together; infinite without privacy.
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
