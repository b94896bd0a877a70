"""The output of a finished study: model, predictions, examples, provenance, and last the result."""

import csv
import io
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data import Embeddings
from fedveil.federation import Agreement, Rounds
from fedveil.io import write_atomic, write_private
from fedveil.privacy import Guarantee, LedgerState, operational_risk
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task
from fedveil.study.prepare import Prepared
from fedveil.study.results.reliability import decision_notes, noise_notes, training_ratio
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.results.schema import SCHEMA, Provenance, Result
from fedveil.study.results.trained_model import (
    TrainedModel,
    finding_cells,
    finding_columns,
    prediction_cells,
    prediction_columns,
)
from fedveil.study.results.training_noise import spread_of
from fedveil.study.training import Trained

__all__ = ["HandedOver", "Outcome"]

Vector = npt.NDArray[np.float64]
NOT_TESTED = "This study has no test images and no learning curve. "
NOISY_ONLY = (
    "The model's accuracy is estimated from noisy histograms of its scores on patients that the hospitals "
    "hold out (metrics.released)."
)
NOT_JUDGED = "The model was not evaluated: measure its accuracy before it is used."
NOT_WITHIN = (
    "The pilot predicts that no level up to the maximum keeps the AUROC within the tolerance: the dearest was used. "
    "More patients, secure aggregation instead of trust site, or a larger maximum would help."
)
PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "dp-accounting",
    "randomgen",
    "scikit-learn",
    "efficientnet-lite-pytorch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """How the finished model was delivered.

    Attributes:
        personal: each hospital's own model made from it, by name; none if real hospitals hold theirs.
        missing: the hospitals that did not receive it.
    """

    personal: Mapping[str, TrainedModel] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished study, ready to be written.

    Attributes:
        prepared: its data.
        task: its model.
        agreement: of coordinator and sites.
        trained: the result of training.
        ledgers: the sites' current ledgers; empty without privacy.
        handed_over: the hospitals' own models, and which hospitals lack the common one.
        baselines: metrics of the alternatives, by name.
        seconds: seconds per stage so far.
        started: when this process began.
    """

    prepared: Prepared
    task: Task
    agreement: Agreement
    trained: Trained
    ledgers: Mapping[str, LedgerState]
    handed_over: HandedOver
    baselines: Mapping[str, Any]
    seconds: dict[str, float]
    started: datetime

    def write(self, directory: RunDirectory) -> dict[str, Any]:
        """Write every file of the run, the result last; return the result."""
        test, statistics = TestSet(self.task), self.trained.statistics
        model = self.task.trained(self.trained.parameters, statistics)
        model.save(directory.path)
        metrics = {}
        if len(test.rows):
            metrics["test"] = self._judged(directory, test)
        if self.trained.histogram is not None:
            metrics["released"] = self.trained.histogram.metrics(model.classes, model.frequencies)
        if self.trained.subgroups is not None:
            metrics["released"]["subgroups"] = self.trained.subgroups.metrics()
        directory.write_json("provenance.json", self._provenance().model_dump())
        own = {
            name: test.point(one.parameters, one.frequencies)
            for name, one in self.handed_over.personal.items()
        }
        result = self._result(metrics, own)
        directory.finish(result)
        return result.to_dict()

    def _judged(self, directory: RunDirectory, test: TestSet) -> dict[str, Any]:
        """Write the predictions on the test images; return their metrics."""
        priors = self.trained.priors
        probabilities = test.probabilities(self.trained.parameters)
        predicted = test.decide(probabilities, priors)
        _write_predictions(directory, self.task, test, probabilities, predicted, priors)
        _write_examples(directory, self.task, test, probabilities, predicted)
        spread = spread_of(self.task, self.trained)
        found = test.metrics(probabilities, priors, spread)
        if spread is not None:
            found |= {f"{name}_noise": std for name, std in asdict(spread).items()}
        return found

    def _result(self, metrics: dict[str, Any], own: Mapping[str, Any]) -> Result:
        agreement, made = self.agreement, self.trained.agreement
        guarantee = self._guarantee()
        risk = operational_risk(guarantee, agreement.mechanisms if agreement.trust != "none" else ())
        study = self.prepared.study
        self.seconds["total"] = (datetime.now(UTC) - self.started).total_seconds()
        return Result.model_validate(
            {
                "schema": SCHEMA,
                "study": study.study.name,
                "description": study.study.description,
                "guarantee": guarantee,
                "mechanism": made.main.mechanism,
                "releases": [
                    {"what": release.name, "mechanism": release.mechanism} for release in made.releases
                ],
                "calibrated": self._calibrated(),
                "risk": {
                    "advantage": risk.advantage,
                    "tpr_at_1_percent_fpr": risk.true_positive_rate,
                    "sentence": str(risk),
                },
                "secure_aggregation": self._secure_aggregation(),
                "sites": [self._site(name) | {"personal": own.get(name)} for name in agreement.sites],
                "rounds": self.trained.rounds,
                "decision": self._decision(),
                "metrics": metrics,
                "baselines": dict(self.baselines) or None,
                "data": self._data(),
                "notes": self.prepared.notes + self._notes(),
                "seconds": self.seconds,
            }
        )

    def _ratio(self) -> float | None:
        """nu of training, by the released or the public number of units."""
        statistics = self.trained.statistics
        units: float | None = self.prepared.study.training.units
        if units is None and statistics is not None:
            units = statistics.units
        return None if units is None else training_ratio(self.trained.agreement, units)

    def _decision(self) -> dict[str, Any] | None:
        certainty, ratio = self.trained.certainty, self._ratio()
        if certainty is None and ratio is None:
            return None
        sure = {} if certainty is None else {"weight": certainty.weight, "error": certainty.error}
        return {**sure, "signal_to_noise": ratio}

    def _guarantee(self) -> Guarantee:
        """The guarantee of the charges: the largest total over the sites, by the accountant.

        A calibrated study chose its level by what it had released, so its guarantee is the maximum fixed beforehand.
        """
        target = self.agreement.target
        if self.agreement.trust == "none":
            return target
        if self.agreement.calibration is not None:
            return self.agreement.planned or target
        return Guarantee(self._spent(), target.delta, target.unit, target.trust)

    def _spent(self) -> float:
        """The largest total of this study's charges over the sites."""
        return max(state.spent(*self.agreement.titles) for state in self.ledgers.values())

    def _calibrated(self) -> dict[str, Any] | None:
        """The levels of a calibrated study, what its pilot predicted, and what was charged."""
        calibration, forecast = self.agreement.calibration, self.trained.forecast
        if calibration is None or forecast is None:
            return None
        return {
            "maximum": self.agreement.target.epsilon,
            "charged": self._spent(),
            "level": forecast.level,
            "epsilon": calibration.level(forecast.level).epsilon,
            "tolerance": calibration.rule.tolerance,
            "within": forecast.within,
            "units": forecast.units,
            "bare": asdict(forecast.bare),
            "mechanisms": list(self.agreement.mechanisms),
            "levels": [
                {"epsilon": level.epsilon} | asdict(found)
                for level, found in zip(calibration.levels, forecast.levels, strict=True)
            ],
        }

    def _secure_aggregation(self) -> dict[str, Any] | None:
        if self.agreement.trust != "secure-aggregation":
            return None
        participants = len(self.agreement.sites)
        return {
            "masks": "real",
            "min_honest": self.agreement.honest,
            "participants": participants,
        }

    def _site(self, name: str) -> dict[str, Any]:
        """What is known about a site; a real hospital's cohort is not known here."""
        state = self.ledgers.get(name)
        spent = {
            "epsilon_spent": state.spent(*self.agreement.titles) if state else None,
            "epsilon_alone": state.spent_alone(*self.agreement.titles) if state else None,
        }
        if name not in self.prepared.sites:
            return {"name": name, **spent}
        dataset, rows = self.prepared.dataset, self.prepared.sites[name]
        if dataset.task == "findings":
            labels = (dataset.labels[rows] == 1).sum(axis=0)
        else:
            labels = np.bincount(dataset.labels[rows], minlength=len(dataset.classes))
        return {
            "name": name,
            "patients": self.prepared.patients[name],
            "images": len(rows),
            "class_counts": {label: int(count) for label, count in zip(dataset.classes, labels, strict=True)},
            **spent,
        }

    def _data(self) -> dict[str, Any]:
        dataset, sites = self.prepared.dataset, self.prepared.sites
        facts = {
            "name": dataset.name,
            "description": dataset.description,
            "synthetic": dataset.synthetic,
            "patients_known": dataset.patients_known,
            "classes": list(dataset.classes),
            "task": dataset.task,
        }
        if len(dataset.test):
            facts |= {
                "images_test": len(dataset.test),
                "patients_test": len(np.unique(dataset.patients[dataset.test])),
            }
        if sites:
            train = np.concatenate(list(sites.values()))
            facts |= {
                "images_train": len(train),
                "patients_train": len(np.unique(dataset.patients[train])),
            }
        return facts

    def _notes(self) -> list[str]:
        notes = [
            f"{site} was left out of the last rounds: {why}."
            for site, why in self.trained.coordinator.left_out.items()
        ]
        planned = sum(one.rounds for one in self.trained.agreement.releases if isinstance(one.query, Rounds))
        if self.trained.rounds != planned:
            notes.append(
                f"Training ended after {self.trained.rounds} of {planned} rounds: interrupted rounds were charged "
                "too, and the budget was spent."
            )
        ratio = self._ratio()
        notes += [] if ratio is None else noise_notes(ratio)
        notes += decision_notes(
            self.trained.certainty,
            skipped=bool(self.trained.skipped),
            findings=self.task.dataset.task == "findings",
        )
        forecast = self.trained.forecast
        calibration = self.agreement.calibration
        if forecast is not None and calibration is not None:
            chosen = calibration.level(forecast.level).epsilon
            notes.append(
                f"Epsilon was calibrated: the rule picked {chosen:g} of at most {self.agreement.target.epsilon:g} from "
                f"what the pilot released, and the ledgers were charged {self._spent():.3g}. The guarantee states the "
                "maximum, which was fixed beforehand; the rest of it remains in the hospitals' budgets."
            )
            notes += [] if forecast.within else [NOT_WITHIN]
        if not len(self.task.dataset.test):
            notes.append(NOT_TESTED + (NOT_JUDGED if self.trained.histogram is None else NOISY_ONLY))
        if len(self.task.dataset.test):
            notes += [one.query.caution for one in self.agreement.releases if one.query.caution]
        if self.handed_over.missing:
            notes.append(
                f"{', '.join(self.handed_over.missing)} did not receive the finished model when the study ended: "
                "`fedveil federation send` delivers it."
            )
        return notes

    def _provenance(self) -> Provenance:
        return Provenance(
            fedveil=version("fedveil"),
            python=platform.python_version(),
            platform=platform.platform(),
            device=platform.processor() or platform.machine(),
            packages={name: version(name) for name in PACKAGES},
            data_digest=self.prepared.dataset.digest() if len(self.prepared.dataset) else "",
            study_digest=self.agreement.digest,
            start=self.prepared.study.model.start_sha256,
            started=self.started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _write_predictions(
    directory: RunDirectory,
    task: Task,
    test: TestSet,
    probabilities: Vector,
    predicted: npt.NDArray[np.int64],
    priors: Vector | None,
) -> None:
    dataset = task.dataset
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if test.findings:
        writer.writerow(["image", "patient", *finding_columns(dataset.classes, truth=True)])
        for row, cells in zip(test.rows, finding_cells(probabilities, predicted, test.labels), strict=True):
            patient = dataset.patient_names[dataset.patients[row]]
            writer.writerow([dataset.image_names[row], patient, *cells])
        write_private(directory.path / "predictions.csv", text.getvalue().encode())
        return
    writer.writerow(["image", "patient", "label", *prediction_columns(dataset.classes)])
    frequencies = np.ones(len(dataset.classes)) if priors is None else np.asarray(priors, dtype=np.float64)
    said = prediction_cells(probabilities, predicted, dataset.classes, frequencies)
    for row, cells in zip(test.rows, said, strict=True):
        patient = dataset.patient_names[dataset.patients[row]]
        writer.writerow([dataset.image_names[row], patient, dataset.classes[dataset.labels[row]], *cells])
    # It names patients: readable by this user only, wherever the run directory is copied to.
    write_private(directory.path / "predictions.csv", text.getvalue().encode())


def _write_examples(
    directory: RunDirectory,
    task: Task,
    test: TestSet,
    probabilities: Vector,
    predicted: npt.NDArray[np.int64],
) -> None:
    """Store a few test images for the report, drawn with the study's seed; none if the study asks for none."""
    count = min(task.study.report.examples, len(test.rows))
    if count == 0 or isinstance(task.dataset.images, Embeddings):
        return
    dataset = task.dataset
    chosen = np.sort(
        np.random.default_rng(task.study.study.seed).choice(len(test.rows), count, replace=False)
    )
    pixels = np.rint(dataset.images.read(test.rows[chosen]) * 255).astype(np.uint8)
    if dataset.images.reading.slices:
        images = pixels[:, pixels.shape[1] // 2]  # the middle slice of a volume
    else:
        images = pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)
    classes = np.array(dataset.classes)
    if test.findings:
        labels, called = (
            np.array([", ".join(classes[row == 1]) or "no finding" for row in one[chosen]])
            for one in (test.labels, predicted)
        )
        sure = np.where(predicted == 1, probabilities, 1 - probabilities).prod(axis=1)[chosen]
    else:
        labels, called = classes[test.labels[chosen]], classes[predicted[chosen]]
        sure = probabilities[chosen, predicted[chosen]]
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": images,
        # File names often hold a patient's name, and a report is passed on.
        "names": np.array([f"test image {number}" for number in range(1, count + 1)]),
        "labels": labels,
        "predicted": called,
        "probability": sure,
    }
    write_atomic(directory.path / "examples.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
