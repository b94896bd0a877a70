"""The study that a coordinator offers to hospitals, from which each side derives the same agreement independently."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedveil.data import Dataset
from fedveil.errors import Refused
from fedveil.federation import Agreement
from fedveil.names import SITE_NAME
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import sizes_of
from fedveil.study.prepare import pinned
from fedveil.study.settings.schema import ColumnSettings, Study

__all__ = ["SOURCE", "Offer"]

SOURCE = "each hospital's own images"
"""The data source in an offered study; the real one differs at every hospital."""

_FIELDS = {"study", "sites", "classes", "channels", "keys"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A study between named hospitals.

    Attributes:
        study: the resolved study; its data source is `SOURCE`.
        sites: the hospitals, in the order of the agreement.
        classes: the class names, in order; a hospital's labels must be among them.
        channels: 1 for grey images, 3 for colour.
        keys: the hospitals' public keys as the coordinator knows them; not part of the agreement, since a hospital
            gets them from the others, not from the coordinator.
    """

    study: Study
    sites: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int
    keys: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a study that would have code of a coordinator's choice imported and run.

        Raises:
            Refused: the study names a function as its network. Nothing has been imported.
        """
        if self.study.model.network.startswith("module:"):
            raise Refused(
                f"an offered study names the function {self.study.model.network} as its network",
                "hospitals run no code that a coordinator names, not even code that they have",
                "train it with `fedveil run` on one machine, or offer a built-in network or timm:NAME",
            )

    @classmethod
    def make(cls, study: Study, sites: tuple[str, ...], dataset: Dataset) -> "Offer":
        """Offer a study with the classes and channels of the coordinator's data set, which may be empty.

        The study also states the other preprocessing, such as image size and window, and the length of precomputed
        features. It does not state how tables are read: each hospital sets that for its own table.
        """
        study = pinned(study, dataset)
        own: dict[str, Any] = {"columns": ColumnSettings(), "preset": "", "layout": "", "accept": ()}
        own |= {"allow_patient_overlap": False, "source": SOURCE}
        data = study.data.model_copy(update={**own, "classes": (), "channels": None})
        model = study.model.model_copy(update={"start": None})  # hospitals need its hash, not where it lies
        described = study.study.model_copy(update={"description": " ".join(study.study.description.split())})
        return cls(
            study=study.model_copy(update={"data": data, "study": described, "model": model}),
            sites=sites,
            classes=dataset.classes,
            channels=dataset.images.channels,
        )

    def agreement(self) -> Agreement:
        """The agreement, calibrated from the offer alone; its digest covers the classes.

        A study may name anything, and nobody here has read it yet. So its model is not built: nothing that it names
        is downloaded, read or allocated.

        Raises:
            FedveilError: the study asks for something impossible.
        """
        sizes = sizes_of(self.study, len(self.classes), self.channels)
        agreement = make_agreement(self.study, sites=self.sites, model=sizes)
        meaning = {"classes": list(self.classes), "channels": self.channels}
        return replace(agreement, settings={**agreement.settings, "offer": meaning})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "study": self.study.to_toml(),
            "sites": list(self.sites),
            "classes": list(self.classes),
            "channels": self.channels,
            "keys": dict(self.keys),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Offer":
        """Read what `to_dict` wrote, validating everything."""
        sites, classes = values.get("sites"), values.get("classes")
        ok = (
            set(values) == _FIELDS
            and isinstance(values["study"], str)
            and len(values["study"]) < 100_000
            and _are(_is_site, sites)
            and _are(_is_class, classes)
            and values["channels"] in (1, 3)
            and _is_keys(values["keys"])
        )
        if not ok:
            raise Refused(
                f"an offer with the fields {sorted(values)!s:.100} arrived",
                "it must hold a study, sites, classes, channels and keys, with names on one line of plain text",
                "correct the names, and install the same fedveil version at the coordinator and at every site",
            )
        study = Study.parse(values["study"], "the offered study")
        if study.model.start is not None:
            raise Refused(
                "an offered study names a folder as model.start",
                "hospitals need the hash of a start, and open no path that a coordinator names",
                "offer the study with `fedveil coordinate`, which leaves the path out",
            )
        if not _printable(study.model_dump(mode="json")):
            raise Refused(
                "the text of an offered study holds line breaks or control characters",
                "text that a person reads before approving must be plain",
                "remove them from the study file",
            )
        return cls(
            study=study,
            sites=tuple(values["sites"]),
            classes=tuple(values["classes"]),
            channels=values["channels"],
            keys=values["keys"],
        )


def _are(fits: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 1000 and all(fits(one) for one in value)


def _is_site(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(SITE_NAME, name) is not None


def _is_class(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()


def _is_keys(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_site(name) and isinstance(key, str) and re.fullmatch("[0-9a-f]{128}", key)
        for name, key in value.items()
    )


def _printable(value: object) -> bool:
    """Whether no text in plain values contains line breaks or terminal control characters, for display before
    approval."""
    match value:
        case str():
            return value.isprintable()
        case list():
            return all(_printable(one) for one in value)
        case dict():
            return all(_printable(one) for one in value.values())
        case _:
            return True
