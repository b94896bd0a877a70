"""Plans and results as text for a terminal."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fedveil.cli.output.console import console

if TYPE_CHECKING:
    from fedveil.planning import Plan

__all__ = ["accuracy_words", "format_epsilon", "print_notes", "print_plan", "print_result"]


def format_epsilon(value: float | None) -> str:
    """Epsilon to three decimals, rounded up so that it never looks smaller than it is.

    >>> format_epsilon(0.99995), format_epsilon(None)
    ('1.000', 'unbounded')
    """
    if value is None or math.isinf(value):
        return "unbounded"
    return f"{math.ceil(value * 1000 - 1e-9) / 1000:.3f}"


def print_plan(plan: "Plan", explain: bool = False) -> None:
    """Print what a study would cost, with the arithmetic if ``explain``."""
    from fedveil.federation.queries import title_of

    values = plan.to_dict()
    console.print(f"[bold]{values['study']}[/]: what it would cost\n")
    console.print(values["sentence"] + "\n", soft_wrap=True)
    sites = Table("site", "patients", "images", box=None, pad_edge=False)
    for site in values["sites"]:
        counts = [site["patients"], site["images"]]
        sites.add_row(
            site["name"], *("not known here" if count is None else f"{count:,}" for count in counts)
        )
    console.print(sites)
    console.print()
    releases = Table(
        "release", "rounds", "noise multiplier", "clip norm", "noise of one site", box=None, pad_edge=False
    )
    for release in values["releases"]:
        mechanism = release["mechanism"]
        releases.add_row(
            title_of(release["what"]),
            str(mechanism["steps"]),
            f"{mechanism['noise_multiplier']:.4g}",
            f"{mechanism['clip_norm']:g}",
            f"{release['site_noise_std']:.4g}",
        )
    console.print(releases)
    console.print()
    if plan.guarantee is None:
        console.print(
            "[bold red]no privacy[/]: this study is a baseline; nothing bounds what its model reveals."
        )
    else:
        console.print(f"epsilon, every site:                 {format_epsilon(plan.guarantee.epsilon)}")
        console.print(f"epsilon, if everyone else colludes:  {format_epsilon(values['epsilon_alone'])}")
        if plan.agreement.trust == "secure-aggregation":
            console.print(
                f"honest noise shares assumed:         {values['min_honest']} of {len(values['sites'])}"
            )
        if plan.risk:
            console.print(f"\n{plan.risk}", soft_wrap=True)
    if plan.outlook and plan.outlook.auroc:
        expected = ", ".join(f"{value:.2f} ({task})" for task, value in plan.outlook.auroc.items())
        console.print(f"\nexpected AUROC if the images are as hard as: {expected}", soft_wrap=True)
    if explain:
        console.print("\n" + "\n".join(plan.explain()), soft_wrap=True, markup=False)
    print_notes(values["notes"])


def accuracy_words(metrics: Mapping[str, Any]) -> str:
    """A model's measured accuracy, in a few words.

    >>> accuracy_words({"test": {"auroc": 0.9661}}), accuracy_words({})
    ('AUROC 0.966', 'not evaluated')
    """
    if metrics.get("test"):
        return f"AUROC {metrics['test']['auroc']:.3f}"
    if metrics.get("released"):
        low, high = metrics["released"]["auroc_interval"]
        return f"AUROC {metrics['released']['auroc']:.3f} ({low:.3f} to {high:.3f}) on held-out patients, with noise"
    return "not evaluated"


def print_result(result: dict[str, Any]) -> None:
    """Print the result of a finished run."""
    test = result["metrics"]["test"]
    guarantee = result["guarantee"]
    table = Table(box=None, show_header=False, pad_edge=False)
    if guarantee["epsilon"] is None:
        table.add_row("guarantee", "[bold red]none: a baseline without privacy[/]")
    else:
        spent = format_epsilon(guarantee["epsilon"])
        table.add_row(
            "guarantee",
            f"epsilon {spent}, delta {guarantee['delta']:g} per {guarantee['unit']}, trust {guarantee['trust']}",
        )
    for name, label in (
        ("auroc", "AUROC"),
        ("balanced_accuracy", "balanced accuracy"),
        ("quadratic_kappa", "quadratic weighted kappa"),
        ("accuracy", "accuracy"),
        ("brier", "Brier score"),
        ("calibration_error", "calibration error"),
    ):
        if test.get(name) is None or math.isnan(test[name]):
            continue
        interval = test.get(f"{name}_interval")
        spread = f"  (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        table.add_row(label, f"{test[name]:.3f}{spread}")
    released = result["metrics"].get("released")
    if released:
        low, high = released["auroc_interval"]
        table.add_row(
            "AUROC, held out",
            f"{released['auroc']:.3f}  (95 % interval {low:.3f} to {high:.3f}, released with noise)",
        )
    table.add_row("tested on", f"{test['n']:,} images")
    table.add_row("time", f"{result['seconds']['total']:.1f} s")
    console.print(table)
    print_notes(result["notes"])


def print_notes(notes: list[str]) -> None:
    """Print notes that qualify the numbers."""
    for note in notes:
        console.print(f"\n[yellow]note:[/] {note}", soft_wrap=True)
