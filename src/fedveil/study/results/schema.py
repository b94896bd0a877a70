"""What ``result.json``, ``provenance.json`` and each line of ``rounds.jsonl`` hold: written and read by these types.

``result.json`` carries ``schema``, the version of its layout. A reader takes every version up to its own: keys that
an older version lacks have defaults, and unknown keys are ignored. A newer one is refused.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from fedveil.errors import FedveilError
from fedveil.privacy import Guarantee, Mechanism
from fedveil.schema import Cost, Count, Number, Record

__all__ = [
    "SCHEMA",
    "ClassResult",
    "DecisionResult",
    "DataFacts",
    "Dropped",
    "ModelMetrics",
    "OwnMetrics",
    "Point",
    "Provenance",
    "Released",
    "Result",
    "RoundLine",
    "SecureAggregation",
    "SiteResult",
]

SCHEMA = 2
"""Version of the layout. Version 1 was written without this key."""
T = TypeVar("T")


def _guarantee(value: Any) -> Guarantee:
    if isinstance(value, Guarantee):
        return value
    fields = dict(value)
    if fields.get("trust") == "none" and fields.get("epsilon") is None:
        fields["epsilon"] = math.inf
    return _parsed(Guarantee.from_dict, fields)


def _mechanism(value: Any) -> Mechanism:
    return value if isinstance(value, Mechanism) else _parsed(Mechanism.from_dict, dict(value))


def _parsed(read: Callable[[dict[str, Any]], T], fields: dict[str, Any]) -> T:
    """Validate with a lower layer's reader, whose errors become pydantic's."""
    try:
        return read(fields)
    except FedveilError as error:
        raise ValueError(f"{error.found}; {error.rule}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"it cannot be read ({error})") from None


def _pair(value: Any) -> Any:
    """A pair [low, high]; null if there is none."""
    if value is None:
        return (math.nan, math.nan)
    return tuple(value) if isinstance(value, list) else value


def _square(value: tuple[tuple[int, ...], ...] | None) -> Any:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        value = tuple(tuple(row) if isinstance(row, list | tuple) else row for row in value)
        if all(isinstance(row, tuple) and len(row) == len(value) for row in value):
            return value
    raise ValueError("it must be a square matrix of counts")


def _tuple(value: Any) -> Any:
    return () if value is None else tuple(value) if isinstance(value, list) else value


def _mapping(value: Any) -> Any:
    return {} if value is None else value


GuaranteeValues = Annotated[Guarantee, PlainValidator(_guarantee), PlainSerializer(Guarantee.to_dict)]
MechanismValues = Annotated[Mechanism, PlainValidator(_mechanism), PlainSerializer(Mechanism.to_dict)]
Interval = Annotated[tuple[Number, Number], BeforeValidator(_pair)]
Confusion = Annotated[tuple[tuple[Count, ...], ...] | None, BeforeValidator(_square)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
UNKNOWN = (math.nan, math.nan)


class Released(Record):
    """A quantity that left the hospitals, and the mechanism that added its noise."""

    what: str
    mechanism: MechanismValues


class SecureAggregation(Record):
    """Whether masks were really exchanged, and how many honest sites the noise relies on."""

    masks: Literal["real", "simulated"]
    min_honest: Count
    participants: Count

    @property
    def simulated(self) -> bool:
        """Whether the masks were only simulated."""
        return self.masks == "simulated"


class OwnMetrics(Record):
    """Accuracy of a hospital's own model on the common test images."""

    auroc: Number = math.nan
    balanced_accuracy: Number = math.nan


class SiteResult(Record):
    """One hospital. Cohort sizes are private: only simulated hospitals have them here, and their own models."""

    name: str
    epsilon_spent: Cost = math.inf
    epsilon_alone: Cost = math.inf
    patients: Count | None = None
    images: Count | None = None
    class_counts: Annotated[dict[str, Count], BeforeValidator(_mapping)] = Field(default_factory=dict)
    personal: OwnMetrics | None = None


class ClassResult(Record):
    """One class against the rest; NaN if undefined."""

    model_config = ConfigDict(extra="allow")

    name: str
    sensitivity: Number = math.nan
    specificity: Number = math.nan
    auroc: Number = math.nan
    n: Count = 0


class Majority(Record):
    """Always predicting the most frequent class."""

    accuracy: Number = math.nan
    balanced_accuracy: Number = math.nan


class SubgroupResult(Record):
    """One group of an attribute, and its gap to all others; NaN if undefined.

    On test images it has their number and that of patients, in a noisy release an estimated number of units.
    """

    attribute: str
    group: str
    n: Count = 0
    patients: Count = 0
    units: Number = math.nan
    auroc: Number = math.nan
    auroc_interval: Interval = UNKNOWN
    auroc_gap: Number = math.nan
    auroc_gap_interval: Interval = UNKNOWN
    balanced_accuracy: Number = math.nan
    balanced_accuracy_interval: Interval = UNKNOWN
    balanced_accuracy_gap: Number = math.nan
    balanced_accuracy_gap_interval: Interval = UNKNOWN


class ModelMetrics(Record):
    """Metrics of one model, from images as in `fedveil.learning.Metrics`, or from a noisy histogram, with additional
    keys."""

    model_config = ConfigDict(extra="allow")

    auroc: Number = math.nan
    balanced_accuracy: Number = math.nan
    accuracy: Number = math.nan
    brier: Number = math.nan
    calibration_error: Number = math.nan
    auroc_noise: Number = math.nan
    balanced_accuracy_noise: Number = math.nan
    quadratic_kappa: Number = math.nan
    quadratic_kappa_interval: Interval = UNKNOWN
    quadratic_kappa_noise: Number = math.nan
    n: Count = 0
    auroc_interval: Interval = UNKNOWN
    balanced_accuracy_interval: Interval = UNKNOWN
    threshold: Number = math.nan
    majority: Majority = Majority()
    confusion: Confusion = None
    per_class: Annotated[tuple[ClassResult, ...], BeforeValidator(_tuple)] = ()
    subgroups: Annotated[tuple[SubgroupResult, ...], BeforeValidator(_tuple)] = ()

    @property
    def matrix(self) -> npt.NDArray[np.int64] | None:
        """`confusion` as an array (classes, classes)."""
        return None if self.confusion is None else np.array(self.confusion, dtype=np.int64)


class DecisionResult(Record):
    """How sure the decision rule is, see `fedveil.learning.Certainty`, and the signal-to-noise ratio of training.

    Of findings it is the least certain rule.
    """

    weight: Number = math.nan
    error: Number = math.nan
    signal_to_noise: Number = math.nan


class JudgedBy(Record):
    """The metrics of the study's model, by evaluation data."""

    test: ModelMetrics | None = None
    released: ModelMetrics | None = None


class RiskFigures(Record):
    """What the guarantee allows the best attacker; see `fedveil.privacy.Risk`."""

    advantage: Number
    tpr_at_1_percent_fpr: Number
    sentence: str


class DataFacts(Record):
    """The data set; counts are None if they are unknown or not public."""

    name: Text = ""
    description: Text = ""
    synthetic: bool = False
    patients_known: bool = True
    classes: Texts = ()
    task: Text = "classes"
    images_train: Count | None = None
    images_test: Count | None = None
    patients_train: Count | None = None
    patients_test: Count | None = None


class Predicted(Record):
    """A predicted AUROC: the expectation, and the interval in which 95 % of runs are expected."""

    expected: Number
    low: Number
    high: Number


class PredictedLevel(Predicted):
    """The prediction at one level of a calibrated study."""

    epsilon: Cost


class Calibrated(Record):
    """How a calibrated study picked its level from what its pilot released.

    Attributes:
        maximum: the epsilon that hospitals admitted, and that the guarantee states.
        charged: what the ledgers hold of the study.
        level: the picked level, from 1.
        epsilon: of that level.
        tolerance: the accepted loss of AUROC against no privacy.
        within: whether the prediction keeps it.
        units: the estimated number of units.
        bare: the prediction without privacy.
        levels: the prediction at every level.
        mechanisms: those of the dearest level with the pilot, which the guarantee prices.
    """

    maximum: Cost
    charged: Cost
    level: Count
    epsilon: Cost
    tolerance: Number
    within: bool
    units: Number
    bare: Predicted
    levels: Annotated[tuple[PredictedLevel, ...], BeforeValidator(_tuple)]
    mechanisms: Annotated[tuple[MechanismValues, ...], BeforeValidator(_tuple)]


class Result(Record):
    """``result.json``: the results of a finished study and its cost.

    Attributes:
        version: of the layout, `SCHEMA`; the key is ``schema``.
        guarantee: of all charges; epsilon is infinite without privacy.
        mechanism: that of the main release.
        releases: everything that was released; the guarantee covers all of it.
        calibrated: how the level of a calibrated study was picked; None for a fixed epsilon.
        sites: in the order of the study.
        rounds: number of finished rounds of training.
        decision: how sure the decision rule is; None without a released threshold.
        baselines: metrics of the alternatives, by name.
        notes: sentences for the report.
        seconds: time by stage.
    """

    version: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = 1
    study: str
    description: Text = ""
    guarantee: GuaranteeValues
    mechanism: MechanismValues | None = None
    releases: Annotated[tuple[Released, ...], BeforeValidator(_tuple)] = ()
    calibrated: Calibrated | None = None
    risk: RiskFigures | None = None
    secure_aggregation: SecureAggregation | None = None
    sites: Annotated[tuple[SiteResult, ...], BeforeValidator(_tuple)] = ()
    rounds: Count | None = None
    decision: DecisionResult | None = None
    metrics: Annotated[JudgedBy, BeforeValidator(_mapping)] = JudgedBy()
    baselines: Annotated[dict[str, ModelMetrics], BeforeValidator(_mapping)] = Field(default_factory=dict)
    data: DataFacts | None = None
    notes: Texts = ()
    seconds: Annotated[dict[str, Number], BeforeValidator(_mapping)] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _releases_of_version_1(cls, values: Any) -> Any:
        """A result without a list of releases made the one that its mechanism describes."""
        if isinstance(values, dict) and not values.get("releases") and values.get("mechanism"):
            return {**values, "releases": [{"what": "training", "mechanism": values["mechanism"]}]}
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the keys of the file; infinity and NaN stay until they are written as null."""
        return self.model_dump(by_alias=True)


class Dropped(Record):
    """A hospital that was left out of a round."""

    site: str
    reason: Text = ""


class Point(Record):
    """Test metrics on the learning curve."""

    auroc: Number = math.nan
    balanced_accuracy: Number = math.nan


class RoundLine(Record):
    """One line of ``rounds.jsonl``."""

    number: Annotated[int, Field(alias="round", ge=0)]
    sites: Texts
    dropped: Annotated[tuple[Dropped, ...], BeforeValidator(_tuple)] = ()
    epsilon_spent: Cost = math.inf
    seconds: Number = math.nan
    update_norm: Number = math.nan
    test: Point | None = None

    @property
    def auroc(self) -> float:
        """On the test images; NaN if the round was not evaluated."""
        return math.nan if self.test is None else self.test.auroc

    @property
    def balanced_accuracy(self) -> float:
        """As above."""
        return math.nan if self.test is None else self.test.balanced_accuracy


class Provenance(Record):
    """``provenance.json``: software, machine and time of the run."""

    fedveil: Text = ""
    python: Text = ""
    platform: Text = ""
    device: Text = ""
    packages: Annotated[dict[str, Text], BeforeValidator(_mapping)] = Field(default_factory=dict)
    data_digest: Text = ""
    study_digest: Text = ""
    start: Text = ""
    started: Text = ""
    finished: Text = ""
