"""What a finished study says about itself: result.json, model, predictions.csv, provenance.json, examples.npz."""

import csv
import io
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.federation import Terms
from fedveil.learning import Metrics, auroc, decide, evaluate, save_model
from fedveil.privacy import Guarantee, operational_risk
from fedveil.study.files import write_atomic
from fedveil.study.prepare import Prepared
from fedveil.study.rundir import RunDirectory
from fedveil.study.task import Task
from fedveil.study.training import Trained

__all__ = ["Evaluation", "write_outcome"]

Vector = npt.NDArray[np.float64]
