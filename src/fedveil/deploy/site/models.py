"""A hospital's finished models, one folder each, for `fedveil predict` on its own scans.

``models/DIGEST`` (the study's full digest) is created atomically, with the common model and its study. The
hospital's own results are added to it: ``personal/``, its own model, and ``evaluation.json``, the accuracy of both
on its held-out patients: exact, hence as confidential as the images.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.deploy.offer import Offer
from fedveil.errors import InvalidValue, Refused
from fedveil.federation.wire import Array
from fedveil.io import write_atomic, write_json
from fedveil.study import TrainedModel

__all__ = ["Judge", "Kept", "Models"]

Judge = Callable[[Offer, TrainedModel], dict[str, Any] | None]
"""A model's metrics on the hospital's held-out images; None if there are none."""


class Models:
    """The folder of finished models of one site."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, digest: str) -> "Kept":
        """The stored model of one study."""
        return Kept(self._folder / digest)

    def keep(self, digest: str, offer: Offer, arrays: Mapping[str, Array]) -> bool:
        """Store a study's finished model; False if the same one is already stored.

        Raises:
            Refused: it is not a model of that study, or differs from the stored one. Nothing is changed.
        """
        model = _model(offer, arrays)
        kept = self.of(digest)
        if kept.exists():
            if not _same(kept.common(), model):
                raise Refused(
                    f"another finished model of study {digest} arrived",
                    f"{kept.folder} holds the first one, which is not replaced",
                    "if it has to be replaced, move that folder away and have the model sent again",
                )
            return False
        self._folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = self._folder / f".{digest}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        model.save(unfinished)
        write_atomic(unfinished / "study.toml", lambda file: file.write(offer.study.to_toml().encode()))
        unfinished.rename(kept.folder)
        return True


class Kept:
    """One study's finished model, and this hospital's own results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self) -> bool:
        """Whether the common model has arrived."""
        return self.folder.is_dir()

    @property
    def is_done(self) -> bool:
        """Whether everything after the arrival was done."""
        return (self.folder / "evaluation.json").exists()

    def common(self) -> TrainedModel:
        """The common model of all hospitals."""
        return TrainedModel.load(self.folder)

    def own(self) -> TrainedModel | None:
        """The hospital's own model, if there is one."""
        personal = self.folder / "personal"
        return TrainedModel.load(personal) if (personal / "model.json").exists() else None

    def keep_own(self, model: TrainedModel) -> None:
        """Store the hospital's own model."""
        personal = self.folder / "personal"
        personal.mkdir(mode=0o700, exist_ok=True)
        model.save(personal)

    def judge(self, offer: Offer, judge: Judge) -> None:
        """Write the models' metrics on this hospital's held-out patients, which must not leave the hospital."""
        own = self.own()
        write_json(
            self.folder / "evaluation.json",
            {
                "what": "exact results on patients that this hospital holds out: as confidential as its images",
                "study": offer.study.study.name,
                "common": judge(offer, self.common()),
                "own": None if own is None else judge(offer, own),
            },
        )


def _same(one: TrainedModel, other: TrainedModel) -> bool:
    """Whether two models of one study are the same, bit for bit."""
    return np.array_equal(one.parameters, other.parameters) and np.array_equal(
        one.frequencies, other.frequencies
    )


def _model(offer: Offer, arrays: Mapping[str, Array]) -> TrainedModel:
    """The model that a coordinator sent, with every number checked."""
    if set(arrays) == {"parameters", "frequencies"} and all(a.dtype == np.float64 for a in arrays.values()):
        parameters, frequencies = arrays["parameters"], arrays["frequencies"]
        model = TrainedModel.of(
            offer.study,
            classes=offer.classes,
            task=offer.study.data.meaning,
            channels=offer.channels,
            parameters=parameters,
            frequencies=frequencies,
        )
        finite = np.isfinite(parameters).all() and np.isfinite(frequencies).all()
        if finite and model.fits and _possible(model):
            return model
    raise Refused(
        "a finished model arrived that is impossible for its study",
        "it must have as many finite numbers as the study's model, and frequencies that its classes may have",
        "send the model of the run that this site took part in",
    )


def _possible(model: TrainedModel) -> bool:
    """Whether the frequencies are some that the model's labels can have, by the rule for all that sites are sent."""
    try:
        model.model.check_frequencies(model.frequencies)
    except InvalidValue:
        return False
    return True
