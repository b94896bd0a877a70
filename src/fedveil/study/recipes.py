"""How a model is trained and measured, and variants of a study with another network or method."""

from dataclasses import dataclass
from typing import Any, Literal

from fedveil.privacy import Unit
from fedveil.study.settings.schema import Study

__all__ = ["METRICS", "Method", "Metric", "Recipe", "metric_name", "own_settings", "variant"]

Method = Literal["gradient", "averaging", "one-shot"]
"""How a model is trained, see `fedveil.study.settings.schema.TrainingSettings`."""
Metric = Literal["auroc", "balanced-accuracy"]
"""The metric that accuracy is measured by."""
METRICS: tuple[Metric, ...] = ("auroc", "balanced-accuracy")


def metric_name(metric: Metric) -> str:
    """The metric's name in words."""
    return "AUROC" if metric == "auroc" else "balanced accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The network and the training method.

    >>> str(Recipe()), str(Recipe(network="cnn", method="averaging"))
    ('gradient', 'cnn by averaging')
    """

    network: str = "linear"
    method: Method = "gradient"

    def __str__(self) -> str:
        return self.method if self.network == "linear" else f"{self.network} by {self.method}"


def own_settings(study: Study) -> dict[str, dict[str, Any]]:
    """The settings of a study, table by table, that differ from the defaults of its network, method and unit.

    >>> study = Study.parse('model.network = "cnn"\\ntraining.rounds = 20')
    >>> {table: keys for table, keys in own_settings(study).items() if keys}
    {'training': {'rounds': 20}}
    """
    plain = Study().with_changes(
        {
            "model": {"network": study.model.network},
            "training": {"method": study.training.method},
            "privacy": {"unit": study.privacy.unit},
        }
    )
    usual = plain.model_dump(mode="json")
    return {
        table: {key: value for key, value in keys.items() if value != usual[table][key]}
        for table, keys in study.model_dump(mode="json").items()
    }


def variant(study: Study, recipe: Recipe, unit: Unit) -> Study:
    """The study with another recipe, for another unit; its own settings are retained where they have the same meaning.

    Settings of training, of gradient length, and of another method's threshold do not carry over to another network.

    >>> variant(Study(), Recipe(network="cnn", method="averaging"), "patient").training.rounds
    40

    Raises:
        StudyError: the retained settings conflict with the recipe.
    """
    own = own_settings(study)
    if recipe.network != study.model.network:
        own["training"] = {key: value for key, value in own["training"].items() if key == "units"}
        own["model"] = {}
        own["privacy"].pop("clip_norm", None)
    if recipe != Recipe(network=study.model.network, method=study.training.method):
        own["privacy"].pop("calibration_share", None)
    own["model"]["network"] = recipe.network
    own["training"]["method"] = recipe.method
    own["privacy"]["unit"] = unit
    return Study().with_changes(own)
