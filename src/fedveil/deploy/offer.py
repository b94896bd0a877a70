"""The study that a coordinator offers to hospitals, from which each side derives the same terms by itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedveil.data import Dataset
from fedveil.errors import Refused
from fedveil.federation import Terms
from fedveil.study.settings import Study
from fedveil.study.task import model_of
from fedveil.study.terms import make_terms

__all__ = ["SOURCE", "Offer"]

SOURCE = "each hospital's own images"
"""What stands in an offered study for its data source, which differs at every hospital."""

_FIELDS = {"study", "sites", "classes", "channels", "keys"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A study between named hospitals.

    Attributes:
        study: the resolved study; its data source is `SOURCE`.
        sites: the hospitals, in the order that the terms name them.
        classes: what the labels mean, in order; a hospital's labels must be among them.
        channels: 1 for grey images, 3 for colour.
        keys: the hospitals' public signing keys as the coordinator knows them; no part of the terms, since a
            hospital takes them from the others, not from the coordinator.
    """

    study: Study
    sites: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int
    keys: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, study: Study, sites: tuple[str, ...], dataset: Dataset) -> "Offer":
        """Offer a study whose classes and channels are those of the coordinator's data set, be it empty."""
        data = study.data.model_copy(update={"source": SOURCE, "classes": (), "channels": None})
        return cls(
            study=study.model_copy(update={"data": data}),
            sites=sites,
            classes=dataset.classes,
            channels=dataset.images.channels,
        )

    def terms(self) -> Terms:
        """What touches privacy, calibrated from the offer alone; the classes are bound into the digest.

        Raises:
            FedveilError: the study asks for something impossible.
        """
        empty = Dataset.empty(self.classes, channels=self.channels, image_size=self.study.data.image_size)
        terms = make_terms(self.study, sites=self.sites, model=model_of(self.study, empty))
        meaning = {"classes": list(self.classes), "channels": self.channels}
        return replace(terms, settings={**terms.settings, "offer": meaning})

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
        """Read what `to_dict` wrote, trusting nothing in it."""
        sites, classes = values.get("sites"), values.get("classes")
        ok = (
            set(values) == _FIELDS
            and isinstance(values["study"], str)
            and len(values["study"]) < 100_000
            and _is_names(sites)
            and _is_names(classes)
            and values["channels"] in (1, 3)
            and _is_keys(values["keys"])
        )
        if not ok:
            raise Refused(
                f"an offer with the fields {', '.join(sorted(values))[:100]} arrived",
                "it must hold a study, sites, classes, channels and keys",
                "install the same fedveil version at the coordinator and at every site",
            )
        return cls(
            study=Study.parse(values["study"], "the offered study"),
            sites=tuple(values["sites"]),
            classes=tuple(values["classes"]),
            channels=values["channels"],
            keys=values["keys"],
        )


def _is_names(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= 1000
        and all(isinstance(name, str) and 0 < len(name) <= 200 for name in value)
    )


def _is_keys(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key)
        for name, key in value.items()
    )
