"""How a study's model is evaluated: on the test images, which are used neither for training nor for any choice.

A coordinator may have none; then nothing is evaluated here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import taken
from fedveil.learning import (
    Spread,
    auroc,
    decide,
    decide_findings,
    evaluate,
    evaluate_findings,
    findings_point,
    quadratic_kappa,
    subgroups,
)
from fedveil.study.pipeline import Task

__all__ = ["TestSet"]

Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class TestSet:
    """The test images of a study's task, or those of them that one hospital holds.

    Predictions assume equal class frequencies: a screening test that calls everyone ill is useless in a cohort where
    most are. This requires the training class frequencies, which were released with noise.
    """

    __test__ = False  # not a test case, despite its name

    def __init__(self, task: Task, rows: Indices | None = None) -> None:
        self._task = task
        self.rows: Indices = task.dataset.test if rows is None else rows
        self.labels = task.dataset.labels[self.rows]
        self.findings = task.dataset.task == "findings"
        self.grades = task.dataset.task == "grades"

    def probabilities(self, parameters: Vector) -> Vector:
        """Class probabilities (n, classes) of the test images."""
        return self._task.probabilities(parameters, self.rows)

    def point(self, parameters: Vector, priors: Vector | None) -> Mapping[str, float] | None:
        """Metrics for the learning curve, of grades also their kappa; None if there are no test images."""
        if not len(self.rows):
            return None
        probabilities = self.probabilities(parameters)
        if self.findings:
            return findings_point(self.labels, probabilities, self._frequencies(priors))
        predicted = decide(probabilities, priors)
        hits = [(predicted[self.labels == code] == code).mean() for code in np.unique(self.labels)]
        point = {
            "auroc": auroc(self.labels, probabilities, ordered=self.grades),
            "balanced_accuracy": float(np.mean(hits)),
        }
        if self.grades:
            point["quadratic_kappa"] = quadratic_kappa(self.labels, predicted, probabilities.shape[1])
        return point

    def decide(self, probabilities: Vector, priors: Vector | None) -> npt.NDArray[np.int64]:
        """Predicted classes (n,), or findings (n, K) of 1 and 0."""
        if self.findings:
            return decide_findings(probabilities, self._frequencies(priors))
        return decide(probabilities, priors)

    def metrics(
        self, probabilities: Vector, priors: Vector | None, spread: Spread | None = None
    ) -> dict[str, Any]:
        """All metrics as ``result.json`` holds them, with intervals over patients and the noise of training.

        Those of subgroups are over patients alone.
        """
        dataset = self._task.dataset
        classes, patients = dataset.classes, dataset.patients[self.rows]
        if self.findings:
            return evaluate_findings(
                self.labels,
                probabilities,
                classes=classes,
                patients=patients,
                frequencies=self._frequencies(priors),
                spread=spread,
            ).to_dict()
        found = evaluate(
            self.labels,
            probabilities,
            classes=classes,
            patients=patients,
            priors=priors,
            spread=spread,
            ordered=self.grades,
        ).to_dict()
        if dataset.attributes:
            columns = taken(dataset.attributes, self.rows)
            groups = subgroups(
                self.labels, probabilities, columns, patients=patients, priors=priors, ordered=self.grades
            )
            found["subgroups"] = [group.to_dict() for group in groups]
        return found

    def _frequencies(self, priors: Vector | None) -> Vector:
        """Of findings: a half each if none were released."""
        return np.full(len(self._task.dataset.classes), 0.5) if priors is None else priors
