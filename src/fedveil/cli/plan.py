"""The verb that comes before anything is spent: what a study file would cost, or which setting to choose."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import typer

from fedveil.cli.console import speak_plainly
from fedveil.cli.study_file import AsJson, Data, read_study
from fedveil.cli.tables import print_plan, print_recommendation
from fedveil.errors import InvalidValue
from fedveil.privacy import Unit
from fedveil.study import (
    Method,
    Recommendation,
    Reference,
    Study,
    Wishes,
    make_plan,
    read_measurements,
    recommend,
    references,
)
from fedveil.study.wishes import METHODS, TRUSTS

__all__ = ["plan"]

W = TypeVar("W", bound=str)
LIKE = "chest-x-rays"


def plan(
    study: Annotated[
        Path | None,
        typer.Argument(help="The study file, default study.toml; with --cohorts optional, for all else."),
    ] = None,
    cohorts: Annotated[
        str | None,
        typer.Option(help="Training patients of each hospital, apart by commas: recommend a setting."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Overrides privacy.epsilon; with --cohorts the largest that is accepted."),
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(help="Overrides privacy.trust; with --cohorts all levels that would be accepted."),
    ] = None,
    data: Data = None,
    auroc: Annotated[float | None, typer.Option(help="With --cohorts: the smallest AUROC.")] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            help="With --cohorts: most that an attacker may find at 1 % false alarms, such as 0.02."
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="With --cohorts: whom the guarantee may protect; patient by default, site, image."),
    ] = None,
    images: Annotated[
        float | None, typer.Option(help="With --cohorts: images of a patient on average, for unit image.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="With --cohorts: methods to choose from; default gradient,one-shot.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help=f"With --cohorts: the task that yours resembles; default {LIKE}.")
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option(help="With --cohorts: directory of a sweep of your own to predict from, not --like."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the arithmetic.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a study would cost, or which setting to choose, before anything runs.

    Example: fedveil plan study.toml --epsilon 3

    Example: fedveil plan --cohorts 800,600,600,500,400 --auroc 0.95 --explain
    """
    with speak_plainly():
        wishes: dict[str, object] = {"auroc": auroc, "risk": risk, "unit": unit, "images": images}
        wishes |= {"method": method, "like": like, "fit": fit}
        if cohorts is None:
            _refuse(wishes, "is a wish, and a study file says what is wanted itself", "add --cohorts")
            planned = make_plan(read_study(study or Path("study.toml"), data, epsilon, trust))
            if as_json:
                print(json.dumps(planned.to_dict() | {"arithmetic": planned.explain()}, indent=2))
            else:
                print_plan(planned, explain)
            return
        _refuse({"data": data}, "does not go with --cohorts, which need no images", "leave one of them out")
        if like is not None and fit is not None:
            _refuse({"like": like}, "does not go with --fit, which names the task too", "leave one out")
        found = recommend(
            Wishes(
                cohorts=_sizes(cohorts),
                images=1.0 if images is None else images,
                units=_words("unit", unit or "patient", get_args(Unit)),
                trusts=_words("trust", trust or ",".join(TRUSTS), TRUSTS),
                methods=_words("method", method or ",".join(METHODS), METHODS),
                epsilon=epsilon,
                auroc=auroc,
                risk=risk,
                study=Study.load(study) if study else Study(),
            ),
            _laws(like or LIKE, fit),
        )
        if as_json:
            print(json.dumps(_plain(found), indent=2))
        else:
            print_recommendation(found, explain)


def _refuse(options: dict[str, object], why: str, remedy: str) -> None:
    """End with a sentence if one of these was given that says nothing in this form of the call."""
    for name, value in options.items():
        if value is not None:
            raise InvalidValue(f"--{name} is {value}", f"it {why}", remedy)


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
                f"--{name} holds {word!r}", f"it lists some of {', '.join(known)}", "choose among them"
            )
    return tuple(one for one in known if one in words)


def _laws(like: str, fit: Path | None) -> dict[Method, Reference]:
    if fit is not None:
        return Reference.fit_each(fit.name, read_measurements(fit))
    known = references()
    if like not in known:
        raise InvalidValue(
            f"--like is {like!r}",
            f"fedveil knows {', '.join(known)}",
            "choose the one whose images resemble yours, or use --fit",
        )
    return known[like]


def _plain(found: Recommendation) -> dict[str, object]:
    return {
        "answer": "no" if found.no else "yes",
        "reason": found.no,
        "chosen": asdict(found.chosen),
        "rounds": found.mechanism.steps,
        "sampling_rate": found.mechanism.sampling_rate,
        "mechanism": found.mechanism.to_dict(),
        "site_noise_std": found.site_noise,
        "auroc_without_privacy": found.bare,
        "like": found.reference.name,
        "candidates": [asdict(one) for one in found.candidates],
        "changes": [asdict(one) for one in found.changes],
        "advice": asdict(found.advice) if found.advice else None,
        "study": found.study_lines(),
        "arithmetic": found.explain(),
    }
