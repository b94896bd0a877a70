"""The study file: one TOML file describes one study. Every key has a default suitable for a first study."""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticKnownError

from fedveil.errors import StudyError
from fedveil.schema import explain
from fedveil.study.settings.conflicts import conflicts
from fedveil.study.settings.data import NOTHING, ColumnSettings, DataSettings, SiteSettings, Table
from fedveil.study.settings.defaults import with_defaults
from fedveil.study.settings.encoder import EncoderSettings
from fedveil.study.settings.model import ModelSettings
from fedveil.study.settings.removed import without_removed
from fedveil.study.settings.shortcuts import ModelMetaclass, nested
from fedveil.study.settings.toml import to_toml

__all__ = [
    "NOTHING",
    "ColumnSettings",
    "DataSettings",
    "EncoderSettings",
    "FederationSettings",
    "GovernanceSettings",
    "ModelSettings",
    "PrivacySettings",
    "ReportSettings",
    "SiteSettings",
    "Study",
    "StudySettings",
    "TrainingSettings",
]


class StudySettings(Table):
    """The study's name, and the seed of everything reproducible."""

    name: str = Field(
        default="study",
        min_length=1,
        max_length=80,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_ .+-]*$",
        description="for ledgers, reports and the run directory",
    )
    description: str = Field(default="", description="purpose of the study, shown in the report")
    seed: int = Field(
        default=0, ge=0, description="seed of initialisation and simulated partition; never of noise"
    )


class TrainingSettings(Table):
    """Federated rounds and the server's optimiser."""

    method: Literal["gradient", "averaging", "one-shot"] = Field(
        default="gradient",
        description='"gradient": one step per round; "averaging": local steps; "one-shot": one round of class means',
    )
    rounds: int = Field(default=30, ge=1, le=100_000, description="rounds of training")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="server step size; default: a rule based on the noise and the number of units",
    )
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="the server's update rule")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of the server's gradient descent")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 regularisation of the trained parameters")
    average_from: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="release the mean of the rounds after this fraction; 1: the last round",
    )
    average_decay: float | None = Field(
        default=None, ge=0, lt=1, description="average with this decay per round; default: equal weights"
    )
    units: int | None = Field(
        default=None,
        ge=1,
        description="public number of units that sums are divided by; default: the released number",
    )
    sampling_rate: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="probability that a unit takes part in a step, independently of others",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="of frozen encoders; features, contributions and sums are always float32 or better",
    )
    clipping: Literal["flat", "per-layer", "automatic"] = Field(
        default="flat",
        description="how a network's gradients are bounded; automatic scales all to one length",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=64,
        description="number of shifted views per image over which a network's gradient is averaged before clipping",
    )
    flip: bool = Field(default=True, description="also mirror views left to right")
    local_steps: int = Field(
        default=5, ge=1, le=10_000, description="local steps per round at each site, for averaging"
    )
    local_learning_rate: float = Field(default=5.0, gt=0, description="step size of local steps")
    proximal: float = Field(
        default=0.0,
        ge=0,
        description="weight of the proximal term that limits local drift (FedProx), for sites that differ",
    )
    personal_pull: float = Field(
        default=1.0,
        ge=0,
        le=20,
        description="weight of the term that keeps a hospital's own model close to the common one",
    )


def _epsilon(value: Any) -> Any:
    """A positive number or the word; checked here, since an error in a union would name its branches, not the key."""
    if value == "calibrated":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticKnownError("float_type")
    if not value > 0:
        raise PydanticKnownError("greater_than", {"gt": 0})
    return value


class PrivacySettings(Table):
    """The guarantee that the study calibrates to."""

    unit: Literal["patient", "image", "site"] = Field(
        default="patient", description="unit that the guarantee protects"
    )
    trust: Literal["site", "secure-aggregation", "server", "none"] = Field(
        default="secure-aggregation", description="who could see an un-noised sum"
    )
    epsilon: Annotated[float | Literal["calibrated"], BeforeValidator(_epsilon)] = Field(
        default=1.0,
        description='total over all rounds and releases; "calibrated": the least that keeps the accuracy',
    )
    max_epsilon: float | None = Field(
        default=None, gt=0, description="the most that a calibrated epsilon may be; sites admit this"
    )
    tolerance: float = Field(
        default=0.01,
        gt=0,
        lt=0.5,
        description="loss of AUROC against no privacy that a calibrated epsilon may cost",
    )
    pilot_epsilon: float = Field(
        default=0.2, gt=0, description="the part of a calibrated epsilon that is spent to find it"
    )
    delta: float = Field(
        default=1e-5, gt=0, lt=1, description="must be below 1 / (number of units of a site)"
    )
    clip_norm: float = Field(default=0.2, gt=0, description="L2 bound of one unit's contribution")
    statistics_share: float = Field(
        default=0.15, ge=0, lt=1, description="share of the budget for class sizes and means, released first"
    )
    calibration_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the budget for the classes' mean scores, released last",
    )
    evaluation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the budget for a noisy histogram of scores on held-out patients",
    )
    subgroup_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the budget for such histograms of subgroups, see data.subgroup",
    )
    personal_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the budget for each hospital's own model, fine-tuned from the common one",
    )
    personal_calibration_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the budget for each hospital's own threshold and class frequencies",
    )

    @property
    def largest_epsilon(self) -> float:
        """Epsilon, or the most that a calibrated one may be: what the guarantee states beforehand."""
        return (self.max_epsilon or math.inf) if self.epsilon == "calibrated" else self.epsilon

    @property
    def about_held_out(self) -> bool:
        """Whether anything is released about held-out patients."""
        return max(self.evaluation_share, self.subgroup_share) > 0

    @model_validator(mode="after")
    def _leaves_something_for_training(self) -> Self:
        shares = sum(value for key, value in self if key.endswith("_share"))
        if shares >= 1:
            raise ValueError(
                f"the budget shares of other releases add up to {shares:g}: they must leave some for training"
            )
        return self


class FederationSettings(Table):
    """The number of sites that a round needs."""

    min_sites: int | None = Field(
        default=None, ge=1, description="smallest number of sites in a round; default two thirds"
    )
    min_honest: int | None = Field(
        default=None,
        ge=1,
        description="smallest number of noise shares unknown to an adversary; default two thirds",
    )
    max_units: int = Field(
        default=100_000,
        ge=1,
        description="largest number of units at a site: sets the range of the integers that are summed",
    )


class GovernanceSettings(Table):
    """Who is responsible for the study and why it is allowed; part of what a hospital approves."""

    controllers: tuple[str, ...] = Field(
        default=(), strict=False, description="the controllers of the processing, with their addresses"
    )
    purpose: str = Field(default="", description="what the model is for, in one sentence")
    legal_basis: str = Field(default="", description="the legal basis, such as an article and an ethics vote")
    retention: str = Field(default="", description="how long the model and the run directory are kept")
    contact: str = Field(default="", description="whom a hospital or a patient may ask")

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Line breaks become spaces: a person reads each text on one line before approving."""
        return (
            " ".join(value.split()) if isinstance(value, str) else tuple(" ".join(v.split()) for v in value)
        )


class ReportSettings(Table):
    """What the report shows."""

    examples: int = Field(default=8, ge=0, le=64, description="test images embedded in the report")
    baselines: bool = Field(default=False, description="also train without privacy, and each hospital alone")


class _ByKeyword(ModelMetaclass):
    """Allows keywords without their tables; `Study.parse`, which validates files, does not use it."""

    def __call__(self, **settings: Any) -> Any:
        try:
            return super().__call__(**nested(self, settings))  # type: ignore[arg-type]
        except ValidationError as error:
            raise explain(error, "Study", StudyError, "correct the value", Study) from None


class Study(Table, metaclass=_ByKeyword):
    """A whole study file, or a study from keywords: tables as mappings, and any key that occurs in only one table.

    >>> Study.parse('[privacy]\\nepsilon = 3').privacy.epsilon
    3.0
    >>> Study(epsilon=3, sites=3, privacy={"trust": "site"}).privacy.trust
    'site'
    """

    if TYPE_CHECKING:

        def __init__(self, **settings: Any) -> None: ...

    study: StudySettings = StudySettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    federation: FederationSettings = FederationSettings()
    report: ReportSettings = ReportSettings()
    governance: GovernanceSettings = GovernanceSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """Fill in the defaults that depend on the kind of study."""
        return with_defaults(values)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        for found in conflicts(self):
            raise ValueError(found)
        return self

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for table in (self.data.sites, self.training, self.privacy):
            for key, value in table:
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{key} must be a finite number")
        return self

    @classmethod
    def parse(cls, text: str, where: str = "study file") -> Self:
        """Read a study from TOML text; `StudyError` names the key, the rule and the remedy."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise StudyError(
                f"{where} cannot be read: {error}", "it must be TOML", "see `fedveil init --help`"
            ) from None
        try:
            return cls.model_validate(without_removed(values, where))
        except ValidationError as error:
            raise explain(error, where, StudyError, "correct the value", cls) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a study file."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError(
                f"{path} does not exist", "a study must be one TOML file", "make one with `fedveil init`"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(
                f"{path} cannot be read: {error}", "a study must be one UTF-8 TOML file", "check the path"
            ) from None
        return cls.parse(text, str(path))

    def with_changes(self, changes: Mapping[str, Mapping[str, object]]) -> Self:
        """The study with some keys changed, table by table, checked like a file."""
        values = self.model_dump(mode="json", exclude_unset=True)
        for table, keys in changes.items():
            values.setdefault(table, {}).update(keys)
        try:
            return type(self).model_validate(values)
        except ValidationError as error:
            raise explain(error, "command line", StudyError, "correct the value", type(self)) from None

    def to_toml(self) -> str:
        """The resolved study: every table and key, in a fixed order."""
        return to_toml(self.model_dump(mode="json", exclude_none=True))
