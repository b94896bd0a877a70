"""What was asked for on the command line, checked and in the terms of the planner."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from fedveil.cli.planning.options import LIKE
from fedveil.errors import InvalidValue
from fedveil.planning import Laws, PlanRequest, Reference, references
from fedveil.planning.request import METHODS, TRUSTS
from fedveil.privacy import Unit
from fedveil.study import METRICS, Method, Metric, Recipe, RunDirectory, Study
from fedveil.sweeps import read_measurements

__all__ = ["known_laws", "make_wishes", "refuse"]

W = TypeVar("W", bound=str)


def refuse(options: Mapping[str, object], why: str, remedy: str) -> None:
    """End with a sentence if one of these was given that says nothing in this form of the call."""
    for name, value in options.items():
        if value is not None:
            raise InvalidValue(f"--{name.replace('_', '-')} is {value}", f"it {why}", remedy)


def known_laws(like: str | None, fit: Path | None) -> tuple[Laws, Study]:
    """What accuracy is predicted from, a known task or a sweep of one's own, and the study that was measured."""
    if fit is not None:
        refuse({"like": like}, "does not go with --fit, which names the task too", "leave one out")
        swept = RunDirectory(fit).study() if (fit / "study.toml").is_file() else Study()
        return Reference.fit_each(fit.name, read_measurements(fit), swept), swept
    known, name = references(), like or LIKE
    if name not in known:
        raise InvalidValue(
            f"--like is {name!r}",
            f"fedveil knows {', '.join(known)}",
            "choose the one whose images resemble yours, or use --fit",
        )
    return known[name], Study()


def make_wishes(
    asked: Mapping[str, Any], cohorts: str, study: Path | None, laws: Laws, measured: Study
) -> PlanRequest:
    """The wishes as the planner takes them.

    Args:
        asked: the options by name, None where they were left out.
        cohorts: training patients of each hospital.
        study: a study file for all else; default what was measured.
        laws: what is known, and so what networks there are to choose from.
        measured: the study that was measured.
    """
    unit, images, metric = asked["unit"], asked["images"], asked["metric"]
    units = _words("unit", unit or "patient", get_args(Unit))
    if "image" in units and images is None:
        refuse({"unit": unit}, "counts images, and cohorts count patients", "add --images, such as 1.8")
    return PlanRequest(
        cohorts=_sizes(cohorts),
        images=1.0 if images is None else images,
        units=units,
        trusts=_words("trust", asked["trust"] or ",".join(TRUSTS), TRUSTS),
        recipes=_recipes(asked["method"], asked["network"], laws),
        epsilon=asked["epsilon"],
        auroc=asked["auroc"],
        balanced_accuracy=asked["balanced_accuracy"],
        risk=asked["risk"],
        metric=None if metric is None else _metric(metric),
        study=Study.load(study) if study else measured,
        measured=measured,
    )


def _recipes(method: str | None, network: str | None, laws: Laws) -> tuple[Recipe, ...]:
    """What is accepted among what is known, linear heads first."""
    networks = tuple(dict.fromkeys(recipe.network for recipe in laws))
    methods: tuple[Method, ...] = _words("method", method or ",".join(METHODS), METHODS)
    accepted = _words("network", network or ",".join(networks), networks)
    found = [one for one in laws if one.method in methods and one.network in accepted]
    if not found:
        wanted = [f"--method {method}"] * (method is not None) + [f"--network {network}"] * (
            network is not None
        )
        raise InvalidValue(
            f"the call has {' and '.join(wanted)}",
            f"accuracy is known of {_listed(laws)}",
            "accept one of them, or fit a sweep of your own with --fit",
        )
    return tuple(sorted(found, key=lambda one: one.network != "linear"))


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))


def _metric(text: str) -> Metric:
    found = _words("metric", text, METRICS)
    if len(found) != 1:
        raise InvalidValue(f"--metric is {text!r}", "settings are compared by one", "choose one")
    return found[0]


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidValue(
            f"--cohorts is {text!r}", "it lists whole numbers apart by commas", "such as 800,600,500"
        ) from None


def _words(name: str, text: str, known: tuple[W, ...]) -> tuple[W, ...]:
    words = [part.strip() for part in text.split(",")]
    for word in words:
        if word not in known:
            raise InvalidValue(
                f"--{name} holds {word!r}", f"it lists some of {_listed(known)}", "choose among them"
            )
    return tuple(one for one in known if one in words)
