"""The finished models that a hospital keeps, a folder each, for `fedveil predict` on its own scans.

``models/DIGEST`` (the study's, whole) appears whole, with the common model and the study
that it is of. What the hospital itself makes of it is added beside: ``personal/``, a model of its own, and
``evaluation.json``, how good both are on the patients that it holds out: exact, hence as private as the images.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.deploy.offer import Offer
from fedveil.errors import Refused
from fedveil.federation.wire import Array
from fedveil.io import write_atomic, write_json
from fedveil.study import TrainedModel

__all__ = ["Judge", "Kept", "Models"]

Judge = Callable[[Offer, TrainedModel], dict[str, Any] | None]
"""How good a model is on the hospital's held-out images; None where it holds out none."""


class Models:
    """The folder of finished models of one site."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, digest: str) -> "Kept":
        """What is kept of one study."""
        return Kept(self._folder / digest)

    def keep(self, digest: str, offer: Offer, arrays: Mapping[str, Array]) -> bool:
        """Keep a study's finished model; False if the very same one is kept already.

        Raises:
            Refused: it is no model of that study, or not the one that is kept. Nothing is changed.
        """
        model = _model(offer, arrays)
        kept = self.of(digest)
        if kept.exists():
            if not _same(kept.common(), model):
                raise Refused(
                    f"another finished model of study {digest} arrived",
                    f"{kept.folder} holds the one that came first",
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
    """One study's finished model, and what this hospital made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self) -> bool:
        """Whether the common model has arrived."""
        return self.folder.is_dir()

    @property
    def is_done(self) -> bool:
        """Whether all that follows the arrival was done."""
        return (self.folder / "evaluation.json").exists()

    def common(self) -> TrainedModel:
        """The model that all hospitals made together."""
        return TrainedModel.load(self.folder)

    def own(self) -> TrainedModel | None:
        """The hospital's own model, if there is one."""
        personal = self.folder / "personal"
        return TrainedModel.load(personal) if (personal / "model.json").exists() else None

    def keep_own(self, model: TrainedModel) -> None:
        """Keep the hospital's own model."""
        personal = self.folder / "personal"
        personal.mkdir(mode=0o700, exist_ok=True)
        model.save(personal)

    def judge(self, offer: Offer, judge: Judge) -> None:
        """Write down how good the models are on this hospital's held-out patients, for nobody else's eyes."""
        own = self.own()
        write_json(
            self.folder / "evaluation.json",
            {
                "what": "exact results on patients that this hospital holds out: as private as its images",
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
    """The model that a coordinator sent, every number of it checked."""
    if set(arrays) == {"parameters", "frequencies"} and all(a.dtype == np.float64 for a in arrays.values()):
        parameters, frequencies = arrays["parameters"], arrays["frequencies"]
        model = TrainedModel.of(
            offer.study,
            classes=offer.classes,
            channels=offer.channels,
            parameters=parameters,
            frequencies=frequencies,
        )
        finite = np.isfinite(parameters).all() and np.isfinite(frequencies).all()
        if finite and (frequencies > 0).all() and model.fits:
            return model
    raise Refused(
        "a finished model arrived that the study cannot have",
        "it must be as many finite numbers as the study's model has, and a positive frequency for each class",
        "send the model of the run that this site took part in",
    )
