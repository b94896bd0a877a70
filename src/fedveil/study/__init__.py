"""One study: the file that describes it, its cost, its rounds, and its run directory.

`Study` is the file, `run` carries it out in a `RunDirectory` with `Hospitals`: simulated ones,
or real ones that `fedveil.deploy` reaches. One path leads from the file to the result, with one round loop, `train`.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.study.arrangement import Arrangement
    from fedveil.study.calibrate import make_agreement
    from fedveil.study.prepare import Prepared, resolve
    from fedveil.study.progress import Progress, Silent
    from fedveil.study.recipes import METRICS, Method, Metric, Recipe, metric_name
    from fedveil.study.results.outcome import HandedOver
    from fedveil.study.results.personalization import has_own, own_model
    from fedveil.study.results.run_directory import RunDirectory
    from fedveil.study.results.trained_model import TrainedModel, predict
    from fedveil.study.runner import Hospitals, Joined
    from fedveil.study.settings.schema import Study
    from fedveil.study.settings.template import study_template
    from fedveil.study.simulation import run
    from fedveil.study.training import Trained, train

__all__ = [
    "METRICS",
    "Arrangement",
    "HandedOver",
    "Hospitals",
    "Joined",
    "Method",
    "Metric",
    "Prepared",
    "Progress",
    "Recipe",
    "RunDirectory",
    "Silent",
    "Study",
    "Trained",
    "TrainedModel",
    "has_own",
    "make_agreement",
    "metric_name",
    "own_model",
    "predict",
    "resolve",
    "run",
    "study_template",
    "train",
]

__getattr__, __dir__ = on_first_use(__name__)
