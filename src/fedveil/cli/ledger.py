"""Reading a ledger: what was charged, and whether the file is intact."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.output.tables import format_epsilon
from fedveil.errors import LedgerError

if TYPE_CHECKING:
    from fedveil.privacy import LedgerState

__all__ = ["app"]

app = typer.Typer(help="Inspect a hospital's privacy ledger.", no_args_is_help=True, rich_markup_mode=None)

LedgerFile = Annotated[Path, typer.Argument(help="A ledger file, such as runs/first/ledgers/site-1.jsonl.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def show(path: LedgerFile, as_json: AsJson = False) -> None:
    """Show what was released, study by study, and what it cost in total.

    Example: fedveil ledger show runs/first/ledgers/site-1.jsonl
    """
    from fedveil.privacy import verify_ledger

    with speak_plainly():
        state = verify_ledger(path)
        if as_json:
            print(json.dumps(_summary(state), indent=2))
            return
        table = Table("study", "release", "rounds", "first", "last", box=None, pad_edge=False)
        for entry in _summary(state)["studies"]:
            for release in entry["releases"]:
                table.add_row(
                    _short(entry["study"]),
                    release["label"],
                    str(release["charges"]),
                    release["first"],
                    release["last"],
                )
        console.print(f"budget: {state.budget}")
        console.print(f"spent:  epsilon {format_epsilon(state.spent())} in {len(state.charges)} charges")
        if state.delta > state.budget.delta:
            console.print(
                f"delta:  {state.delta:g}, twice the budget's, as several studies were charged and one samples units"
            )
        console.print(f"alone:  epsilon {format_epsilon(state.spent_alone())} if everyone else colludes\n")
        console.print(table)
        for decision in state.decisions:
            console.print(f"\n{decision.subject[:12]} {decision}", soft_wrap=True, markup=False)
        console.print(f"\nhead: line {state.head.seq}, {state.head.hash}")


@app.command()
def verify(path: LedgerFile) -> None:
    """Check every line and the hash chain; exit code 2 if the file was changed, truncated or rolled back.

    Example: fedveil ledger verify runs/first/ledgers/site-1.jsonl
    """
    from fedveil.privacy import verify_ledger

    with speak_plainly():
        state = verify_ledger(path)
        console.print(
            f"{path} is sound: {len(state.charges)} charges, head {state.head.hash}", soft_wrap=True
        )


@app.command()
def amend(
    path: LedgerFile,
    reason: Annotated[str, typer.Option(help="The reason; it is recorded in the ledger.")],
    epsilon: Annotated[float, typer.Option(help="The new budget for everything charged, past and future.")],
    by: Annotated[str, typer.Option(help="The name of the person who decided.")],
    role: Annotated[str, typer.Option(help='Their role, such as "privacy officer".')],
    delta: Annotated[float | None, typer.Option(help="The new delta; default unchanged.")] = None,
) -> None:
    """Record a new budget, who decided and why. What was spent stays spent. Stop the site's service first.

    Example: fedveil ledger amend site/ledger.jsonl --epsilon 3 --reason "ethics board" --by "A. Lind" --role DPO
    """
    with speak_plainly():
        if not path.exists():
            raise LedgerError(
                f"{path} does not exist", "only an existing ledger is amended", "check the path"
            )
        _amend(path, epsilon, delta, reason, by=by, role=role)


def _amend(path: Path, epsilon: float, delta: float | None, reason: str, *, by: str, role: str) -> None:
    from fedveil.privacy import Budget, Decision, Ledger

    with Ledger(path) as ledger:
        old = ledger.budget
        budget = Budget(epsilon, old.delta if delta is None else delta, old.unit)
        decision = Decision(act="amended", subject=str(budget), by=by, role=role, reason=reason)
        ledger.amend_budget(budget, reason, decision.dated())
        console.print(f"the budget of {path} is now {budget} (it was {old})", soft_wrap=True, markup=False)


def _short(study: str) -> str:
    """A study's name and short digest; ``--json`` has the full digest, which identifies the study."""
    name, _, digest = study.rpartition(" ")
    return f"{name} {digest[:12]}..." if len(digest) == 64 else study


def _summary(state: "LedgerState") -> dict[str, Any]:
    from fedveil.federation import release_of

    studies = []
    for study in state.studies:
        charges = [charge for charge in state.charges if charge.study == study]
        labels = dict.fromkeys(release_of(charge.label) for charge in charges)
        releases = []
        for label in labels:
            times = [charge.time for charge in charges if release_of(charge.label) == label]
            releases.append({"label": label, "charges": len(times), "first": times[0], "last": times[-1]})
        studies.append({"study": study, "epsilon": state.spent(study), "releases": releases})
    alone = state.spent_alone()
    return {
        "budget": state.budget.to_dict(),
        "delta": state.delta,
        "epsilon_spent": state.spent(),
        "epsilon_alone": alone if alone < float("inf") else None,
        "charges": len(state.charges),
        "decisions": [decision.to_dict() for decision in state.decisions],
        "studies": studies,
        "head": {"seq": state.head.seq, "hash": state.head.hash},
    }
