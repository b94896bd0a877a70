"""The recommended setting as text for a terminal, and as JSON."""

from dataclasses import asdict

from rich.table import Table

from fedveil.cli.output.console import console
from fedveil.cli.output.tables import format_epsilon, print_notes
from fedveil.cli.planning.chart import accuracy_chart
from fedveil.planning import Recommendation
from fedveil.study import METRICS, Metric, Recipe, metric_name

__all__ = ["print_recommendation", "recommendation_values"]

HEADS = {
    "gradient": "gradient: linear head on frozen public features",
    "one-shot": "one-shot: linear head from class means of public features",
}
TRAINED = {"gradient": "one step per round", "averaging": "local steps, whose results are averaged"}


def print_recommendation(found: Recommendation, explain: bool = False) -> None:
    """Print the recommended setting, its predicted accuracy, and the lines of a study file that select it."""
    if found.no:
        console.print(f"[bold red]no[/]: {found.no}.\n", soft_wrap=True)
    console.print("closest setting" if found.no else "recommended")
    console.print(_setting(found))
    if len(found.candidates) > 1:
        console.print()
        console.print(_candidates(found))
    _print_curve(found)
    advice, metric = found.advice, metric_name(found.plan_request.ranked)
    console.print(
        f"\nthe cheapest change that helps most: {advice.what} ({metric} {advice.expected:.3f})"
        if advice
        else f"\nno available change would raise the {metric} noticeably",
        soft_wrap=True,
    )
    if explain:
        console.print("\n" + "\n".join(found.explain()), soft_wrap=True, markup=False)
    print_notes([found.note])
    if not found.no:
        console.print(f"\n{found.study_lines()}", soft_wrap=True, markup=False)


def _print_curve(found: Recommendation) -> None:
    """Accuracy against epsilon, with the chosen one marked, and its risk in words."""
    chosen, metric = found.chosen.epsilon, metric_name(found.plan_request.ranked)
    console.print()
    console.print(accuracy_chart(found.curve, chosen, metric))
    rates = [one.true_positive_rate for one in found.curve if one.epsilon == chosen]
    loss = found.plan_request.loss
    least = "" if loss is None or found.no else f": the least within {loss:g} of the {metric} without privacy"
    console.print(f"> epsilon {format_epsilon(chosen)}{least}")
    if rates:
        console.print(
            f"found: at 1 % false alarms an attacker finds at most {rates[0]:.1%} of those who took part",
            soft_wrap=True,
        )


def recommendation_values(found: Recommendation) -> dict[str, object]:
    """Plain values for JSON."""
    return {
        "answer": "no" if found.no else "yes",
        "reason": found.no,
        "metric": found.plan_request.ranked,
        "chosen": asdict(found.chosen),
        "rounds": found.rounds,
        "sampling_rate": found.mechanism.sampling_rate,
        "mechanism": found.mechanism.to_dict(),
        "site_noise_std": found.site_noise,
        "without_privacy": found.bare,
        "like": found.reference.name,
        "tolerance": found.plan_request.loss,
        "curve": [asdict(one) for one in found.curve],
        "candidates": [asdict(one) for one in found.candidates],
        "samplings": [asdict(one) for one in found.samplings],
        "changes": [asdict(one) for one in found.changes],
        "advice": asdict(found.advice) if found.advice else None,
        "study": found.study_lines(),
        "arithmetic": found.explain(),
    }


def _setting(found: Recommendation) -> Table:
    """The chosen setting and its predicted accuracy; the metric that settings are compared by comes first."""
    one, mechanism = found.chosen, found.mechanism
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("trust", one.configuration.trust)
    table.add_row("unit", one.configuration.unit)
    table.add_row(
        "epsilon", f"{format_epsilon(one.epsilon)} at delta {found.plan_request.study.privacy.delta:g}"
    )
    table.add_row("method", _method(one.configuration.recipe))
    table.add_row("rounds", str(found.rounds))
    table.add_row("sampling", _sampling(found))
    table.add_row("clip norm", f"{mechanism.clip_norm:g}")
    each = " to each step of its own" if found.agreement.main.noise_inside else ""
    table.add_row(
        "noise multiplier",
        f"{mechanism.noise_multiplier:.4g}; one hospital adds {found.site_noise:.3g}{each}",
    )
    for metric in sorted(METRICS, key=lambda metric: metric != found.plan_request.ranked):
        _add_prediction(table, metric, found)
    return table


def _add_prediction(table: Table, metric: Metric, found: Recommendation) -> None:
    one = found.chosen.predicted[metric]
    table.add_row(
        f"predicted {metric_name(metric)}",
        f"{one.expected:.3f}, 95 % of runs in {one.low:.3f} to {one.high:.3f}; no privacy {found.bare[metric]:.3f}",
    )


def _method(recipe: Recipe) -> str:
    """What is trained, and how, in words."""
    if recipe.network == "linear":
        return HEADS[recipe.method]
    return f"{recipe.method}: the network {recipe.network}, {TRAINED[recipe.method]}"


def _sampling(found: Recommendation) -> str:
    rate = found.mechanism.sampling_rate
    unit = found.chosen.configuration.unit
    return (
        f"every {unit} takes part in each"
        if rate == 1
        else f"{rate:g} of the {unit}s in each step, at random"
    )


def _candidates(found: Recommendation) -> Table:
    """Every accepted configuration."""
    metric = found.plan_request.ranked
    table = Table("unit", "trust", "method", "epsilon", metric_name(metric), box=None, pad_edge=False)
    for one in found.candidates:
        configuration, missed = one.configuration, "" if one.reaches else " (misses)"
        table.add_row(
            configuration.unit,
            configuration.trust,
            str(configuration.recipe),
            format_epsilon(one.epsilon),
            f"{one.value(metric):.3f}{missed}",
        )
    return table
