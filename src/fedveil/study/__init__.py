"""One study: the file that describes it, what it would cost, its rounds, and the directory that it leaves.

`Study` is the file, `make_plan` prices it, `run` carries it out in a `RunDirectory` with `Hospitals`: simulated ones,
or real ones that `fedveil.deploy` reaches. There is one path from the file to the result, and one round loop, `train`.
"""

from fedveil.study.arrangement import Arrangement
from fedveil.study.grid import EVEN, NAMED, NO_PRIVACY, Grid, Measurement, Setting
from fedveil.study.model_file import TrainedModel, predict
from fedveil.study.outcome import HandedOver
from fedveil.study.own import has_own, own_model
from fedveil.study.payment import Paid, read_payment
from fedveil.study.plan import Plan, make_plan
from fedveil.study.planner import recommend
from fedveil.study.prepare import Prepared, prepare, resolve
from fedveil.study.progress import Progress, Silent
from fedveil.study.recipes import METRICS, Method, Metric, Recipe, metric_name
from fedveil.study.recommendation import Recommendation
from fedveil.study.reference import Laws, Reference, references
from fedveil.study.rundir import RunDirectory
from fedveil.study.session import Hospitals, Joined
from fedveil.study.settings import Study
from fedveil.study.simulation import run
from fedveil.study.sweep import measure, read_measurements, sweep
from fedveil.study.template import study_template
from fedveil.study.terms import make_terms
from fedveil.study.training import Trained, train
from fedveil.study.wishes import Way, Wishes

__all__ = [
    "Arrangement",
    "EVEN",
    "METRICS",
    "NAMED",
    "NO_PRIVACY",
    "Grid",
    "HandedOver",
    "Hospitals",
    "Joined",
    "Laws",
    "Measurement",
    "Method",
    "Metric",
    "Paid",
    "Plan",
    "Prepared",
    "Progress",
    "Recipe",
    "Recommendation",
    "Reference",
    "RunDirectory",
    "Setting",
    "Silent",
    "Study",
    "Trained",
    "TrainedModel",
    "Way",
    "Wishes",
    "has_own",
    "make_plan",
    "make_terms",
    "measure",
    "own_model",
    "metric_name",
    "predict",
    "prepare",
    "read_measurements",
    "read_payment",
    "recommend",
    "references",
    "resolve",
    "run",
    "study_template",
    "sweep",
    "train",
]
