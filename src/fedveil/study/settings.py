"""The study file: one TOML file describes one study. Every key has a default that a newcomer would want."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedveil.errors import StudyError
from fedveil.study.conflicts import conflicts
from fedveil.study.defaults import with_defaults
from fedveil.study.toml import to_toml

__all__ = [
    "DataSettings",
    "FederationSettings",
    "ModelSettings",
    "PrivacySettings",
    "ReportSettings",
    "SiteSettings",
    "StudySettings",
    "Study",
    "TrainingSettings",
]

NOTHING = "none"
"""The data source of a coordinator who has no images, not even for testing."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudySettings(_Table):
    """What the study is called, and the seed of everything that may be repeated."""

    name: str = Field(
        default="study",
        min_length=1,
        max_length=80,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_ .+-]*$",
        description="for ledgers, reports and the run directory",
    )
    description: str = Field(default="", description="what the study is for, shown in the report")
    seed: int = Field(
        default=0, ge=0, description="of initialisation and simulated partition; never of noise"
    )


class SiteSettings(_Table):
    """Simulated hospitals, where the data names none."""

    count: int = Field(default=5, ge=1, le=1000, description="number of hospitals")
    scheme: Literal["iid", "dirichlet", "quantity"] = Field(
        default="dirichlet",
        description="how patients are dealt out: evenly, by skewed labels, or by skewed numbers",
    )
    alpha: float = Field(default=0.5, gt=0, description="how alike hospitals are: smaller is more skewed")


class DataSettings(_Table):
    """The images: where they are, how large, and which classes make the task."""

    source: str = Field(
        default="phantom",
        description='"phantom", "medmnist:NAME", a manifest .csv, a folder, an .npz file, or for a coordinator "none"',
    )
    classes: tuple[str, ...] = Field(
        default=(), strict=False, description='names of the classes in order, where the source is "none"'
    )
    channels: Literal[1, 3] | None = Field(
        default=None, description='1 for grey images, 3 for colour, where the source is "none"'
    )
    image_size: int = Field(default=64, ge=8, le=1024, description="pixels along each side after resizing")
    positive: tuple[str, ...] = Field(
        default=(), strict=False, description="classes that together are the positive one of a binary task"
    )
    test_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="patients held out for testing, where the data has no test split"
    )
    allow_patient_overlap: bool = Field(
        default=False, description="accept a patient in two sites, or in training and test"
    )
    sites: SiteSettings = SiteSettings()

    @model_validator(mode="after")
    def _tells_the_task(self) -> Self:
        """Classes and channels come from images, or from the file where there are none."""
        if self.source != NOTHING:
            if self.classes or self.channels is not None:
                raise ValueError(
                    f'classes and channels are for the source "{NOTHING}": other sources have them'
                )
            return self
        if self.channels is None:
            raise ValueError(f'the source "{NOTHING}" needs channels: 1 for grey images, 3 for colour')
        if not all(self.classes) or not 2 <= len(set(self.classes)) == len(self.classes):
            raise ValueError(
                f'the source "{NOTHING}" needs classes: two different names or more, as hospitals use'
            )
        if self.positive and len(self.classes) != 2:
            raise ValueError(
                "with positive there are two classes: name the rest first, then the positive one"
            )
        return self


class ModelSettings(_Table):
    """The classifier: frozen public features under a linear head, or a network trained whole."""

    features: str = Field(
        default="efficientnet-lite0",
        description='"efficientnet-lite0", "scattering", "pixels", joined by "+"; "none" trains a network on pixels',
    )
    whitened: bool = Field(
        default=True, description="centre and whiten features by what synthetic images show, at no cost"
    )
    network: str = Field(
        default="linear",
        pattern=r"^(linear|cnn|resnet18|densenet121|efficientnet-lite0(@[0-9]{2,3})?|timm:[\w./-]{1,80}(@scratch)?)$",
        description='"linear", or on pixels "cnn", "resnet18", "densenet121", "efficientnet-lite0", "timm:..."',
    )
    trained_blocks: int = Field(
        default=1, ge=0, le=11, description="blocks of efficientnet-lite0 that are tuned, from the last used"
    )


class TrainingSettings(_Table):
    """Federated rounds and the server's optimiser."""

    method: Literal["gradient", "averaging", "one-shot"] = Field(
        default="gradient",
        description='"gradient": one step a round; "averaging": local steps; "one-shot": one round of class means',
    )
    rounds: int = Field(default=30, ge=1, le=100_000, description="rounds of training")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="server step size; default by rule from the noise and the number of units",
    )
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="the server's update rule")
    second_order: bool = Field(
        default=False,
        description="also release second moments of features, and undo what they show: for large epsilons or cohorts",
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of the server's gradient descent")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 regularisation of the trained parameters")
    average_from: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="release the mean of the rounds after this fraction; 1 the last one",
    )
    average_decay: float | None = Field(
        default=None, ge=0, lt=1, description="average with this decay a round; default all rounds alike"
    )
    units: int | None = Field(
        default=None, ge=1, description="public number of units that sums are divided by; default as released"
    )
    sampling_rate: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="chance of each unit to take part in a step, each drawn by itself",
    )
    clipping: Literal["flat", "per-layer", "automatic"] = Field(
        default="flat",
        description="how a network's gradients are bounded; automatic brings all to one length",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=64,
        description="shifted or cropped views of an image that are averaged before clipping",
    )
    flip: bool = Field(default=True, description="views are also mirrored left to right")
    local_steps: int = Field(
        default=5, ge=1, le=10_000, description="steps a round at a site, when averaging"
    )
    local_learning_rate: float = Field(default=5.0, gt=0, description="step size of local steps")
    proximal: float = Field(
        default=0.0, ge=0, description="pull of local steps towards the round's start, for sites that differ"
    )
    personal_pull: float = Field(
        default=1.0,
        ge=0,
        le=20,
        description="how strongly a hospital's own model is held to the common one, where it has one",
    )


class PrivacySettings(_Table):
    """The guarantee that the study calibrates to."""

    unit: Literal["patient", "image", "site"] = Field(
        default="patient", description="whom the guarantee protects"
    )
    trust: Literal["site", "secure-aggregation", "server", "none"] = Field(
        default="secure-aggregation", description="who could see an un-noised sum"
    )
    epsilon: float = Field(default=1.0, gt=0, description="total over all rounds and releases")
    delta: float = Field(default=1e-5, gt=0, lt=1, description="must be below one over a site's units")
    clip_norm: float = Field(default=0.2, gt=0, description="L2 bound of one unit's contribution")
    statistics_share: float = Field(
        default=0.15, ge=0, lt=1, description="part of the budget for class sizes and means, released first"
    )
    calibration_share: float = Field(
        default=0.05, ge=0, lt=1, description="part of the budget for the classes' mean scores, released last"
    )
    evaluation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of the budget for a noisy histogram of scores on patients that the hospitals hold out",
    )
    personal_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of the budget for a model of each hospital's own, trained on from the common one",
    )
    personal_calibration_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of the budget for a threshold and class frequencies of each hospital's own",
    )
    progress_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of the budget for checks of progress, after which training may stop early",
    )
    spending: float = Field(
        default=1.0,
        ge=0.01,
        le=100,
        description="budget of the last rounds of training over that of the first; 1 spends alike on all",
    )

    @model_validator(mode="after")
    def _leaves_something_for_training(self) -> Self:
        shares = sum(value for key, value in self if key.endswith("_share"))
        if shares >= 1:
            raise ValueError(
                f"the shares of the budget beside training add up to {shares:g}: training needs the rest"
            )
        return self


class FederationSettings(_Table):
    """How many sites a round needs."""

    min_sites: int | None = Field(
        default=None, ge=1, description="fewest sites of a round; default two thirds"
    )
    min_honest: int | None = Field(
        default=None, ge=1, description="fewest noise shares unknown to an adversary; default two thirds"
    )
    max_units: int = Field(
        default=100_000,
        ge=1,
        description="most units a site may hold: room in the whole numbers that are summed",
    )


class ReportSettings(_Table):
    """What the report shows."""

    examples: int = Field(default=8, ge=0, le=64, description="test images embedded in the report")
    baselines: bool = Field(default=False, description="also train without privacy, and each hospital alone")


class Study(_Table):
    """A whole study file.

    >>> Study.parse('[privacy]\\nepsilon = 3').privacy.epsilon
    3.0
    """

    study: StudySettings = StudySettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    federation: FederationSettings = FederationSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """Fill in what the kind of study means by what it leaves out."""
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
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(error, where) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a study file."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError(
                f"{path} does not exist", "a study is one TOML file", "make one with `fedveil init`"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(
                f"{path} cannot be read: {error}", "a study is one UTF-8 TOML file", "check the path"
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
            raise _explain(error, "command line") from None

    def to_toml(self) -> str:
        """The resolved study: every table and key, in a fixed order."""
        return to_toml(self.model_dump(mode="json", exclude_none=True))


def _explain(error: ValidationError, where: str) -> StudyError:
    """Turn pydantic's first complaint into found; rule: remedy."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "the study"
    others = error.error_count() - 1
    more = f" ({others} more after this one)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(tuple(str(part) for part in first["loc"][:-1]))
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.5)
        remedy = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
        return StudyError(
            f"{where}: {key} is not a key of a study", "unknown keys are refused", remedy + more
        )
    rule = first["msg"].removeprefix("Value error, ")
    rule = rule[0].lower() + rule[1:]
    if not first["loc"]:
        return StudyError(f"{where}: its settings do not go together", rule, "change one of them" + more)
    return StudyError(f"{where}: {key} is {first['input']!r}"[:200], rule, "correct the value" + more)


def _known_keys(path: tuple[str, ...]) -> list[str]:
    model: Any = Study
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
