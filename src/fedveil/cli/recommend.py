"""The verb that recommends a setting from cohort sizes and wishes."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from fedveil.cli.console import console, speak_plainly
from fedveil.cli.tables import format_epsilon
from fedveil.errors import InvalidValue
from fedveil.study import Recommendation, Reference, Study, Wishes, read_measurements, recommend, references

__all__ = ["register"]

W = TypeVar("W", bound=str)


def register(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("recommend", rich_help_panel="Studies")(recommend_command)


def recommend_command(
    cohorts: Annotated[str, typer.Argument(help="Training patients of each hospital, apart by commas.")],
    epsilon: Annotated[float | None, typer.Option(help="The largest epsilon.")] = None,
    auroc: Annotated[float | None, typer.Option(help="The smallest AUROC.")] = None,
    risk: Annotated[
        float | None, typer.Option(help="Most that an attacker may find at 1 % false alarms, such as 0.02.")
    ] = None,
    trust: Annotated[
        str, typer.Option(help="Levels of trust that would be accepted.")
    ] = "site,secure-aggregation,server",
    unit: Annotated[
        str, typer.Option(help="Whom the guarantee protects: patient, image or site.")
    ] = "patient",
    like: Annotated[str, typer.Option(help="The task that yours resembles.")] = "chest-x-rays",
    fit: Annotated[
        Path | None,
        typer.Option(help="Directory of a sweep of your own to predict from, in place of --like."),
    ] = None,
    study: Annotated[Path | None, typer.Option(help="Study file, for delta, rounds and clip norm.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the arithmetic.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Recommend a privacy setting, with the accuracy that it should give, before anything is spent.

    Example: fedveil recommend 800,600,600,500,400 --auroc 0.95 --explain
    """
    with speak_plainly():
        wishes = Wishes(
            cohorts=_sizes(cohorts),
            unit=_word("unit", unit, ("patient", "image", "site")),
            trusts=tuple(
                _word("trust", part.strip(), ("site", "secure-aggregation", "server"))
                for part in trust.split(",")
            ),
            epsilon=epsilon,
            auroc=auroc,
            risk=risk,
            study=Study.load(study) if study else Study(),
        )
        found = recommend(wishes, _reference(like, fit))
        if as_json:
            print(json.dumps(_plain(found), indent=2))
        else:
            _print(found, explain)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidValue(
            f"cohorts are {text!r}", "they are whole numbers apart by commas", "such as 800,600,500"
        ) from None


def _word(name: str, word: str, known: tuple[W, ...]) -> W:
    for one in known:
        if one == word:
            return one
    raise InvalidValue(f"--{name} holds {word!r}", f"it is one of {', '.join(known)}", "choose one of them")


def _reference(like: str, fit: Path | None) -> Reference:
    if fit is not None:
        return Reference.fit(fit.name, read_measurements(fit))
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
        "unit": found.wishes.unit,
        "method": found.wishes.study.training.method,
        "rounds": found.mechanism.steps,
        "sampling_rate": found.mechanism.sampling_rate,
        "mechanism": found.mechanism.to_dict(),
        "site_noise_std": found.site_noise,
        "auroc_without_privacy": found.bare,
        "like": found.reference.name,
        "candidates": [asdict(one) for one in found.candidates],
        "changes": [asdict(one) for one in found.changes],
        "advice": asdict(found.advice) if found.advice else None,
        "arithmetic": found.explain(),
    }


def _print(found: Recommendation, explain: bool) -> None:
    one, mechanism = found.chosen, found.mechanism
    if found.no:
        console.print(f"[bold red]no[/]: {found.no}.\n", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("trust", one.trust)
    table.add_row("unit", found.wishes.unit)
    table.add_row("epsilon", f"{format_epsilon(one.epsilon)} at delta {found.wishes.study.privacy.delta:g}")
    table.add_row("method", "a linear head on frozen public features, by gradient")
    table.add_row("rounds", f"{mechanism.steps}, everyone takes part in each (no sampling)")
    table.add_row("clip norm", f"{mechanism.clip_norm:g}")
    table.add_row(
        "noise multiplier", f"{mechanism.noise_multiplier:.4g}; one hospital adds {found.site_noise:.3g}"
    )
    low, high = one.interval
    table.add_row("predicted AUROC", f"{one.auroc:.3f}  (95 % of runs between {low:.3f} and {high:.3f})")
    table.add_row("without privacy", f"{found.bare:.3f}")
    console.print("closest setting" if found.no else "recommended")
    console.print(table)
    if len(found.candidates) > 1:
        console.print()
        others = Table("trust", "epsilon", "predicted AUROC", box=None, pad_edge=False)
        for other in found.candidates:
            others.add_row(other.trust, format_epsilon(other.epsilon), f"{other.auroc:.3f}")
        console.print(others)
    console.print()
    if found.advice:
        console.print(
            f"the cheapest change that would help most: {found.advice.what} (AUROC {found.advice.auroc:.3f})"
        )
    else:
        console.print("no change within reach would raise the AUROC noticeably")
    if explain:
        console.print("\n" + "\n".join(found.explain()), soft_wrap=True)
    console.print(f"\n[yellow]note:[/] {_note(found)}", soft_wrap=True)


def _note(found: Recommendation) -> str:
    """How far the prediction reaches."""
    covered = found.reference.covers(found.wishes.patients, found.chosen.ratio)
    beyond = (
        ""
        if covered or not math.isfinite(found.chosen.ratio)
        else " This setting lies beyond what that was fitted on, so take it as a rough guess."
    )
    return (
        f"predicted from {found.reference.runs} runs on {found.reference.name}; images and classes that are harder or "
        f"easier than those give other numbers.{beyond}"
    )
