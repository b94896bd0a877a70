"""The command line's options, checked and translated into a plan request."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from fedveil.cli.planning.options import LIKE
from fedveil.errors import InvalidValue
from fedveil.planning import Laws, PlanRequest, Reference, references
from fedveil.planning.request import METHODS, TRUSTS
from fedveil.privacy import Trust, Unit
from fedveil.study import METRICS, Method, Metric, Recipe, RunDirectory, Study
from fedveil.sweeps import read_measurements

__all__ = ["known_laws", "make_plan_request", "refuse"]

W = TypeVar("W", bound=str)


def refuse(options: Mapping[str, object], why: str, remedy: str) -> None:
    """Raise an error if an option was given that has no meaning in this form of the call."""
    for name, value in options.items():
        if value is not None:
            raise InvalidValue(f"--{name.replace('_', '-')} is {value}", f"it {why}", remedy)


def known_laws(like: str | None, fit: Path | None) -> tuple[Laws, Study]:
    """What accuracy is predicted from, a known task or the user's own sweep, and the study that was measured."""
    if fit is not None:
        refuse({"like": like}, "cannot be combined with --fit, which also names the task", "drop one of them")
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


def make_plan_request(
    asked: Mapping[str, Any], cohorts: str, study: Path | None, laws: Laws, measured: Study
) -> PlanRequest:
    """The plan request that the options describe.

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
    base = Study.load(study) if study else measured
    return PlanRequest(
        cohorts=_sizes(cohorts),
        images=1.0 if images is None else images,
        units=units,
        trusts=_words("trust", asked["trust"], TRUSTS) if asked["trust"] else _no_weaker(base),
        recipes=_recipes(asked["method"], asked["network"], laws),
        epsilon=asked["epsilon"],
        auroc=asked["auroc"],
        balanced_accuracy=asked["balanced_accuracy"],
        risk=asked["risk"],
        metric=None if metric is None else _metric(metric),
        tolerance=asked["tolerance"],
        study=base,
        measured=measured,
    )


def _no_weaker(study: Study) -> tuple[Trust, ...]:
    """The trust levels that trust others no more than the study does; a study without privacy counts as the default."""
    trust = study.privacy.trust
    own: Trust = trust if trust in TRUSTS else Study().privacy.trust
    return TRUSTS[: TRUSTS.index(own) + 1]


def _recipes(method: str | None, network: str | None, laws: Laws) -> tuple[Recipe, ...]:
    """The accepted recipes among the known ones, linear heads first."""
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
            f"accuracy is known for {_listed(laws)}",
            "choose one of them, or fit your own sweep with --fit",
        )
    return tuple(sorted(found, key=lambda one: one.network != "linear"))


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))


def _metric(text: str) -> Metric:
    found = _words("metric", text, METRICS)
    if len(found) != 1:
        raise InvalidValue(f"--metric is {text!r}", "settings are compared by exactly one", "choose one")
    return found[0]


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidValue(
            f"--cohorts is {text!r}",
            "it must be a comma-separated list of whole numbers",
            "such as 800,600,500",
        ) from None


def _words(name: str, text: str, known: tuple[W, ...]) -> tuple[W, ...]:
    words = [part.strip() for part in text.split(",")]
    for word in words:
        if word not in known:
            raise InvalidValue(
                f"--{name} holds {word!r}", f"it lists some of {_listed(known)}", "choose among them"
            )
    return tuple(one for one in known if one in words)
