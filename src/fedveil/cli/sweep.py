"""The verb that measures what each privacy setting costs in accuracy."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedveil.cli.output.console import console, errors, speak_plainly
from fedveil.cli.output.progress import Bars
from fedveil.cli.output.tables import format_epsilon
from fedveil.errors import InvalidValue
from fedveil.privacy import Trust, Unit
from fedveil.report import write_sweep
from fedveil.study import Method, Study, resolve
from fedveil.sweeps import (
    EVEN,
    NO_PRIVACY,
    Grid,
    Knee,
    Measurement,
    Paid,
    Setting,
    knees,
    read_payment,
    sweep,
)

__all__ = ["sweep_command"]

T = TypeVar("T")
TRUSTS = ("site", "secure-aggregation", "server")
WORDS = {"none": NO_PRIVACY, "iid": EVEN, "all": None}


def sweep_command(
    study: Annotated[Path, typer.Argument(help="The study file.")] = Path("study.toml"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory; default sweeps/NAME.")] = None,
    epsilon: Annotated[str, typer.Option(help='Values, "none" for no privacy.')] = "0.25,0.5,1,2,4,8,none",
    trust: Annotated[str, typer.Option(help="Trust levels.")] = "site,secure-aggregation,server",
    unit: Annotated[str | None, typer.Option(help="Protected units; default as in the study.")] = None,
    sites: Annotated[str | None, typer.Option(help="Numbers of hospitals; default as in the study.")] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            help='Similarity of the simulated hospitals, "iid" for equal ones; default as in the study.'
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How models are trained, such as gradient,one-shot; default as in the study."),
    ] = None,
    patients: Annotated[str, typer.Option(help='Numbers of training patients, or "all".')] = "all",
    seeds: Annotated[int, typer.Option(help="Repeats of every setting.")] = 1,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also measure pooled images, each hospital alone, and no privacy."),
    ] = False,
    pay: Annotated[
        float | None,
        typer.Option(
            metavar="EPSILON",
            help="Epsilon that all models together may cost on real data; without it real data is refused.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep; its lists may grow.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default one per core.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help='Of joblib, such as "dask:ADDRESS"; default processes of this machine.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure what each privacy setting costs in accuracy; on real data only within a declared budget.

    Example: fedveil sweep study.toml --epsilon 0.25,1,4,none --sites 3,10 --seeds 5
    """
    with speak_plainly():
        resolved = resolve(Study.load(study), study.parent)
        own = resolved.data.sites
        grid = Grid(
            epsilon=_list("epsilon", epsilon, float),
            trust=cast(tuple[Trust, ...], _list("trust", trust, _one_of(Trust))),
            unit=cast(tuple[Unit, ...], _list("unit", unit or resolved.privacy.unit, _one_of(Unit))),
            sites=_list("sites", sites or str(own.count), int),
            alpha=_list("alpha", alpha or ("iid" if own.scheme == "iid" else str(own.alpha)), float),
            method=cast(
                tuple[Method, ...], _list("method", method or resolved.training.method, _one_of(Method))
            ),
            patients=_list("patients", patients, int),
            seeds=seeds,
            baselines=baselines,
        )
        folder = out or Path("sweeps") / resolved.study.name.replace(" ", "-")
        with _TimedBars(quiet=as_json) as bars:
            results = sweep(
                folder,
                resolved,
                grid,
                resume=resume,
                workers=workers,
                backend=backend,
                pay=pay,
                progress=bars,
            )
        _tell(folder, results, as_json)


def _tell(folder: Path, results: list[Measurement], as_json: bool) -> None:
    """Write the page, and print the results and their cost."""
    page, paid = write_sweep(folder), read_payment(folder)
    if as_json:
        found: dict[str, Any] = {"settings": len(results), "page": str(page)}
        found["least_epsilon"] = [
            {
                "trust": one.trust,
                "sites": one.setting.sites,
                "unit": one.setting.unit,
                "method": one.setting.method,
                "epsilon": _finite(one.epsilon),
                "interval": [_finite(one.low), _finite(one.high)],
                "auroc": one.auroc,
                "without_privacy": one.bare,
            }
            for one in knees(results)
        ]
        if paid:
            found |= {"guarantee": paid.guarantee.to_dict(), "epsilon_spent": dict(paid.spent)}
        print(json.dumps(found))
        return
    _print_sweep(results)
    _print_knees(knees(results))
    if paid:
        _print_paid(paid)
    errors.print(f"\npage: {page}")


class _TimedBars(Bars):
    """Progress with the remaining time, estimated over the whole sweep."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[note]}"),
            console=errors,
            disable=quiet or not errors.is_terminal,
            speed_estimate_period=600.0,
        )


def _print_sweep(results: list[Measurement]) -> None:
    """Mean AUROC by epsilon and trust, or by arrangement, over all other swept settings."""
    columns = [*dict.fromkeys(_column(one.setting) for one in results if one.setting.trust != "none")] or [
        "none"
    ]
    found: dict[tuple[float, str], list[float]] = {}
    for one in results:
        # Without privacy, trust does not matter: the federation's value is shown in all of its columns.
        for name in [*TRUSTS, "none"] if _column(one.setting) == "none" else [_column(one.setting)]:
            found.setdefault((one.setting.epsilon, name), []).append(one.auroc)
    table = Table("epsilon", *columns, box=None, pad_edge=False)
    for epsilon in dict.fromkeys(one.setting.epsilon for one in results):
        row = []
        for name in columns:
            values = found.get((epsilon, name), [])
            row.append(f"{sum(values) / len(values):.3f}" if values else "")
        table.add_row("none" if math.isinf(epsilon) else format_epsilon(epsilon), *row)
    console.print(f"mean AUROC over {len(results)} settings\n")
    console.print(table)


def _column(setting: Setting) -> str:
    return setting.trust if setting.arrangement == "federated" else setting.arrangement


def _finite(value: float) -> float | None:
    """The value for JSON; None stands for infinity and for what is unknown."""
    return value if math.isfinite(value) else None


def _print_knees(found: Sequence[Knee]) -> None:
    """Print the recommendation: the least epsilon that keeps the accuracy, per trust and number of hospitals."""
    if not found:
        return
    own = ("trust", "sites", "unit", "alpha", "method", "patients")
    varied = [
        name for name in own if name in own[:2] or len({getattr(one.setting, name) for one in found}) > 1
    ]
    table = Table(*varied, "epsilon", "95 % of repeats", "AUROC", "no privacy", box=None, pad_edge=False)
    for one in found:
        reached = "none" if math.isinf(one.epsilon) else format_epsilon(one.epsilon)
        ends = ["none" if math.isinf(end) else f"{end:g}" for end in (one.low, one.high)]
        interval = "" if math.isnan(one.low) else f"{ends[0]} to {ends[1]}"
        cells = [str(getattr(one.setting, name)) for name in varied]
        table.add_row(*cells, reached, interval, f"{one.auroc:.3f}", f"{one.bare:.3f}")
    console.print(f"\nleast epsilon within {found[0].tolerance:g} of the AUROC without privacy\n")
    console.print(table)


def _print_paid(paid: Paid) -> None:
    """Print what the whole sweep costs, and what choosing a setting by it means."""
    console.print(f"\nall models of this sweep together: {paid.guarantee}\n", soft_wrap=True)
    console.print(
        f"charged so far: epsilon {format_epsilon(max(paid.spent.values()))} at most, of {paid.guarantee.epsilon:g} "
        "that are paid. Choosing a setting by this sweep is covered; a later run on the same patients adds "
        "to it.",
        soft_wrap=True,
    )


def _list(name: str, text: str, read: Callable[[str], T]) -> tuple[T, ...]:
    """Comma-separated values; some words stand for values that are not numbers."""
    values = []
    for part in text.split(","):
        word = part.strip()
        if word in WORDS and read in (float, int):
            values.append(cast(T, WORDS[word]))
            continue
        try:
            values.append(read(word))
        except ValueError:
            kind = {float: "numbers", int: "whole numbers"}.get(cast(Any, read), "known words")
            raise InvalidValue(
                f"--{name} holds {word!r}",
                f"it must be a comma-separated list of {kind}",
                f"see {name} in --help",
            ) from None
    return tuple(values)


def _one_of(kind: Any) -> Callable[[str], str]:
    def read(word: str) -> str:
        if word not in get_args(kind):
            raise ValueError(word)
        return word

    return read
