"""The public model that a study starts from: found, checked against the study, and identified by its hash."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedveil.data import Dataset
from fedveil.errors import StudyError
from fedveil.learning import ClassHead, FindingsHead, PublicStart
from fedveil.study.results.trained_model import TrainedModel
from fedveil.study.settings.schema import Study

__all__ = ["load_start", "note_on_start", "start_hash", "start_matches"]

FIELDS = {
    "network": "model.network",
    "trained_blocks": "model.trained_blocks",
    "trained": "model.trained",
    "features": "model.features",
    "whitened": "model.whitened",
    "encoder": "model.encoder",
    "dimension": "model.dimension",
    "image_size": "data.image_size",
    "slices": "data.slices",
    "axis": "data.axis",
    "spacing": "data.spacing",
    "channels": "channels",
    "window": "data.window",
    "task": "the task",
}
"""What a start shares with the study, and its setting: with any other, its weights mean something else."""


def start_hash(folder: Path) -> str:
    """SHA-256 over the SHA-256 of ``model.json`` and that of ``model.safetensors``, each in hexadecimal."""
    try:
        parts = [
            hashlib.sha256((folder / f"model.{kind}").read_bytes()).hexdigest()
            for kind in ("json", "safetensors")
        ]
    except OSError as error:
        raise StudyError(
            f"model.start is {folder}, and {error.filename} cannot be read",
            "a start must be a folder with model.json and model.safetensors, such as a finished run",
            "check the path",
        ) from None
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def load_start(study: Study, dataset: Dataset) -> PublicStart | None:
    """The study's start; None without one, and at hospitals, which need only its hash.

    Raises:
        StudyError: it is missing or damaged, it changed since the study began, or it is for other inputs or classes.
    """
    if study.model.start is None:
        return None
    folder = Path(study.model.start)
    found, expected = start_hash(folder), study.model.start_sha256
    if expected and found != expected:
        raise StudyError(
            f"the model in {folder} has the hash {found}",
            f"the study began with {expected}",
            "restore the model, or start the study again in another directory",
        )
    model = _loaded(study)
    wanted = TrainedModel.of(
        study,
        classes=dataset.classes,
        channels=dataset.images.channels,
        parameters=np.empty(0),
        task=dataset.task,
    )
    for name, setting in FIELDS.items():
        _same(setting, getattr(model, name), getattr(wanted, name))
    _same("the number of classes", len(model.classes), len(wanted.classes))
    found_model = model.model
    found_model.check_parameters(model.parameters)
    if isinstance(found_model, ClassHead | FindingsHead):  # linear heads do without torch
        centre, _, _, trained = found_model.split(model.parameters)
        return PublicStart(centre, found_model.head.weights(trained))
    _, centre, trained = found_model.split(model.parameters)
    return PublicStart(centre, trained)


def _loaded(study: Study) -> TrainedModel:
    """The start; no function that it names is imported unless the study names it too."""
    folder = Path(str(study.model.start))
    try:
        found = json.loads((folder / "model.json").read_text(encoding="utf-8")).get("network", "linear")
    except (OSError, ValueError, AttributeError):
        return TrainedModel.load(folder)  # which says what is wrong
    _same(FIELDS["network"], found, study.model.network)
    return TrainedModel.load(folder)


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StudyError(
            f"model.start was trained with {found!r} as {what}",
            f"the study has {wanted!r}",
            "train the start with the study's settings, or change the study's",
        )


def start_matches(study: Study, classes: tuple[str, ...]) -> dict[str, str]:
    """The start's classes by the study's, matched by their order."""
    if study.model.start is None:
        return {}
    return dict(zip(classes, _loaded(study).classes, strict=True))


def note_on_start(study: Study, classes: tuple[str, ...]) -> Iterator[str]:
    """What a reader of a plan or result has to know of the start."""
    if study.model.start is None:
        return
    pairs = start_matches(study, classes)
    others = [f'"{own}" as "{public}"' for own, public in pairs.items() if own != public]
    renamed = f" Classes are matched by their order: {', '.join(others)}." if others else ""
    brings = "" if study.model.network == "linear" else " What it brings to a network is not predicted."
    yield (
        f"Training is pulled towards a public model, SHA-256 {study.model.start_sha256}.{brings}{renamed} The "
        "guarantee covers the hospitals' patients only, not the images that this model was trained on."
    )
