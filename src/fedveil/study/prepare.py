"""From a study file to its sites: reads the data, splits it or names the sites, checks the guarantee's conditions."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.data import (
    Dataset,
    Embeddings,
    Settings,
    held_out_patients,
    hospitals,
    is_path,
    load,
    named_hospitals,
)
from fedveil.data.formats.arrays import sized
from fedveil.errors import StudyError
from fedveil.learning.encoders import PRECOMPUTED
from fedveil.privacy import check_delta
from fedveil.study.results.public_start import note_on_start, start_hash
from fedveil.study.settings.conflicts import conflicts
from fedveil.study.settings.encoder import EncoderSettings
from fedveil.study.settings.schema import NOTHING, ModelSettings, Study

__all__ = ["Prepared", "pinned", "prepare", "resolve"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A study's data, checked and split among its sites.

    Attributes:
        study: the resolved study.
        dataset: every image.
        sites: training images of each site, by name, in order; empty if real hospitals hold them.
        simulated: whether the hospitals were made by splitting the data.
        held_out: test images that each site holds, by name, if the study releases an evaluation on them.
    """

    study: Study
    dataset: Dataset
    sites: dict[str, Indices]
    simulated: bool
    held_out: dict[str, Indices] = field(default_factory=dict)

    @property
    def patients(self) -> dict[str, int]:
        """Number of training patients per site."""
        return {name: len(np.unique(self.dataset.patients[rows])) for name, rows in self.sites.items()}

    @property
    def units(self) -> dict[str, int]:
        """Number of protected units per site."""
        match self.study.privacy.unit:
            case "patient":
                return self.patients
            case "image":
                return {name: len(rows) for name, rows in self.sites.items()}
            case "site":
                return dict.fromkeys(self.sites, 1)

    @property
    def notes(self) -> list[str]:
        """Notes on the data that a reader of the result needs."""
        notes = list(note_on_start(self.study, self.dataset.classes))
        if self.dataset.synthetic:
            notes.append(
                "The images are synthetic (the built-in phantom set): accuracy on them says nothing about patients."
            )
        if not self.dataset.patients_known:
            notes.append(
                "The data names no patients, so each image counts as a separate patient. If a patient has several "
                "images, the guarantee covers each image, not the patient."
            )
        if self.simulated:
            notes.append(
                "The hospitals are simulated by splitting one data set's patients among them. The guarantee assumes "
                "that patients are assigned to fixed hospitals: without one patient, "
                "the split might have assigned others differently."
            )
        if self.sites and not self.dataset.synthetic:
            notes.append(
                "This directory holds exact counts of each hospital's patients and classes, and predictions for test "
                "patients: it is as confidential as the images."
            )
        if self.held_out and self.simulated:
            notes.append(
                "The test patients were split evenly among the simulated hospitals, which released a noisy histogram "
                "of their scores: metrics.released follows from it, metrics.test from the images themselves."
            )
        return notes


def pinned(study: Study, dataset: Dataset) -> Study:
    """The study with channels, classes and vector length filled in from its data; they are public from here on.

    They are chosen once, from the header of the first image, the labels and the shape of embeddings. A resumed run,
    or a repeated training, takes them from the study, even if images were added or removed.

    Raises:
        StudyError: the study's settings do not go together with these.
    """
    data = study.data.model_copy(
        update={"channels": dataset.images.channels, "classes": dataset.classes, "task": dataset.task}
    )
    model = study.model
    if isinstance(dataset.images, Embeddings) and model.dimension is None:
        if model.features != PRECOMPUTED:
            raise StudyError(
                f"{dataset.name} holds embeddings, and model.features is {model.features!r}",
                "features are computed from pixels, which embeddings do not have",
                f'set model.features = "{PRECOMPUTED}"',
            )
        model = model.model_copy(update={"dimension": dataset.images.dimension})
    model = _with_start(_with_encoder(model))
    study = study.model_copy(update={"data": data, "model": model})
    for conflict in conflicts(study):  # the task of data in memory is known only now
        rule, _, remedy = conflict.partition(": ")
        raise StudyError(f'{dataset.name} holds the task "{dataset.task}"', rule, remedy)
    return study


def _with_encoder(model: ModelSettings) -> ModelSettings:
    """With the hash and the lengths of an encoder that is not built in, which is registered on this machine.

    Raises:
        InvalidValue: it is missing, or is not acceptable.
    """
    spec = model.encoder.spec(model.features)
    if spec is None or spec.is_pinned:
        return model
    from fedveil.learning.encoders.external.register import register

    weights = Path(model.encoder.weights) if model.encoder.weights else None
    pinned, _ = register(spec, weights=weights)
    return model.model_copy(update={"features": pinned.features, "encoder": EncoderSettings.of(pinned)})


def _with_start(model: ModelSettings) -> ModelSettings:
    """With the hash of the public model that training starts from."""
    if model.start is None or model.start_sha256:
        return model
    return model.model_copy(update={"start_sha256": start_hash(Path(model.start))})


def _given(study: Study, dataset: Dataset) -> Dataset:
    """Data in memory, as the study asks for it: with its size, channels and window, and these classes."""
    asked = study.data
    if asked.task not in (None, dataset.task):
        raise StudyError(
            f'{dataset.name} holds the task "{dataset.task}"',
            f'the study asks for "{asked.task}"',
            "give task to Dataset.from_arrays, or remove data.task from the study",
        )
    if asked.classes and asked.classes != dataset.classes:
        raise StudyError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}",
            f"the study's are {', '.join(asked.classes)}",
            "give classes to Dataset.from_arrays, or remove data.classes from the study",
        )
    return sized(dataset, asked.image_size, asked.reading)


def resolve(study: Study, base: Path) -> Study:
    """The study with its data source, encoder and start as absolute paths, if they are paths relative to ``base``."""
    study = study.model_copy(update={"model": _located(study.model, base)})
    source = study.data.source
    if not is_path(source):
        return study
    data = study.data.model_copy(update={"source": str((base / source).resolve())})
    return study.model_copy(update={"data": data})


def _located(model: ModelSettings, base: Path) -> ModelSettings:
    """With the paths of an encoder's files made absolute; one that is pinned is found by its hash instead."""
    if model.start is not None:
        model = model.model_copy(update={"start": str((base / model.start).resolve())})
    spec = model.encoder.spec(model.features)
    if spec is None or spec.is_pinned:
        return model
    updated: dict[str, object] = {}
    if spec.kind != "timm":
        updated["features"] = f"{spec.kind}:{(base / spec.name).resolve()}"
    if model.encoder.weights:
        weights = str((base / model.encoder.weights).resolve())
        updated["encoder"] = model.encoder.model_copy(update={"weights": weights})
    return model.model_copy(update=updated)


def prepare(study: Study, dataset: Dataset | None = None) -> Prepared:
    """Read a resolved study's data, unless it is given, and split it among its sites.

    Raises:
        DataError: the data cannot be used as it stands.
        InvalidValue: delta is larger than one over the number of units.
    """
    settings = study.data
    if settings.source == NOTHING:
        raise StudyError(
            f'data.source is "{NOTHING}"',
            "this is for the coordinator of real hospitals, which hold the images; a simulation has none",
            "name a data source, or start the study with `fedveil coordinate`",
        )
    if dataset is None:
        asked: Settings = {**settings.settings, "seed": study.study.seed}
        dataset = load(settings.source, **asked)
    else:
        dataset = _given(study, dataset)
    if not len(dataset.test):
        raise StudyError(
            f"{settings.source} holds no test images",
            "a study is evaluated on patients it was not trained on",
            "mark test rows in the split column, or omit the column to have test patients drawn",
        )
    simulated = dataset.sites is None
    if simulated:
        dealt = hospitals(
            dataset, settings.sites.count, settings.sites.scheme, settings.sites.alpha, study.study.seed
        )
        sites = {f"site-{number}": rows for number, rows in enumerate(dealt, 1)}
    else:
        sites = named_hospitals(dataset)
    released = study.privacy.about_held_out
    held_out = held_out_patients(dataset, tuple(sites), study.study.seed) if released else {}
    study = pinned(study, dataset)
    prepared = Prepared(study=study, dataset=dataset, sites=sites, simulated=simulated, held_out=held_out)
    _check_delta(prepared)
    _check_baselines(prepared)
    return prepared


def _check_baselines(prepared: Prepared) -> None:
    """Refuse to train on real hospitals' patients without privacy, or again without a charge, for comparison."""
    if prepared.study.report.baselines and not (prepared.simulated or prepared.dataset.synthetic):
        raise StudyError(
            f"{prepared.dataset.name} names {len(prepared.sites)} real hospitals, and report.baselines is set",
            "baselines train on the same patients again, also without privacy, and no ledger is charged for it",
            "remove report.baselines, or compare on a public or simulated set",
        )


def _check_delta(prepared: Prepared) -> None:
    """A delta near one over the number of units would allow publishing one of them outright."""
    privacy = prepared.study.privacy
    if privacy.trust != "none" and privacy.unit != "site":
        check_delta(privacy.delta, sum(prepared.units.values()))
