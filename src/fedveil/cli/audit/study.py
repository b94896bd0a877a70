"""The command that attacks a study: audit."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedveil.cli.engines import need_flower
from fedveil.cli.output.console import console, errors, speak_plainly
from fedveil.cli.output.progress import Bars
from fedveil.cli.study_file import AsJson, Data, Epsilon, Trust, read_study

if TYPE_CHECKING:
    from fedveil.audit import AuditResult
    from fedveil.study import Hospitals

__all__ = ["audit_command"]


Only = Annotated[
    list[str] | None,
    typer.Option(help="Attackers: white box, protocol, one run, black box. Repeat for several; default all."),
]
Services = Annotated[
    bool,
    typer.Option("--services", help="Attack running site services over this machine's network, in one run."),
]


def audit_command(
    target: Annotated[Path, typer.Argument(help="A study file, or a finished run directory.")] = Path(
        "study.toml"
    ),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for audit.json; default the run, or audits/NAME."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which all lower bounds hold together.")] = 0.95,
    only: Only = None,
    trials: Annotated[
        int | None, typer.Option(help="White-box executions of each world; default what takes some seconds.")
    ] = None,
    sessions: Annotated[
        int, typer.Option(help="Worlds of each kind that run through the whole protocol.")
    ] = 4,
    canaries: Annotated[int, typer.Option(help="Canary patients in the one run.")] = 400,
    references: Annotated[int, typer.Option(help="Models that the black-box attacker trains.")] = 6,
    own_images: Annotated[
        bool,
        typer.Option("--own-images", help="Attack on the study's own images; nothing leaves this process."),
    ] = False,
    services: Services = False,
    data: Data = None,
    epsilon: Epsilon = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Attack a study's own code with canary patients, and prove lower bounds on its epsilon.

    Attacks use synthetic or public patients, and charge nobody's ledger. An interrupted audit goes on where it was. The
    exit code is 1 if the guarantee is contradicted. Example: fedveil audit study.toml
    """
    effort: dict[str, Any] = {
        "confidence": confidence,
        "trials": trials,
        "sessions": sessions,
        "canaries": canaries,
    }
    wanted = only or (["one run"] if services else None)
    effort |= {"references": references} | ({"attackers": tuple(wanted)} if wanted else {})
    with speak_plainly():
        contradicted = _attack(target, out, (data, epsilon, trust), effort, own_images, services, as_json)
    if contradicted:
        raise SystemExit(1)


def _attack(
    target: Path,
    out: Path | None,
    changes: tuple[str | None, float | None, str | None],
    effort: dict[str, Any],
    own_images: bool,
    services: bool,
    as_json: bool,
) -> bool:
    """Run the audit and print it; whether the guarantee is contradicted."""
    from fedveil.audit import Effort, audit
    from fedveil.report import write_report
    from fedveil.study import RunDirectory

    finished = (target / "result.json").exists()
    study = RunDirectory(target).study() if target.is_dir() else read_study(target, *changes)
    folder = out or (target if target.is_dir() else Path("audits") / study.study.name.replace(" ", "-"))
    hospitals = _services() if services else None
    with Bars(quiet=as_json) as bars:
        result = audit(
            study,
            folder,
            own_images=own_images,
            effort=Effort(**effort),
            progress=bars,
            hospitals=hospitals,
        )
    if as_json:
        print(json.dumps(json.loads((folder / "audit.json").read_text()), indent=2))
    else:
        _print(result, folder)
    if finished and folder == target and not as_json:
        errors.print(f"report: {write_report(folder)}")
    return bool(result.contradicted)


def _services() -> "Hospitals":
    """Real programs on this machine; refused without Flower."""
    need_flower()
    from fedveil.deploy.rehearsal import Rehearsal

    return Rehearsal()


def _print(result: "AuditResult", folder: Path) -> None:
    """A table of the bounds, and the verdict."""
    from rich.table import Table

    sure = f"{100 * result.confidence:g} %"
    table = Table(
        "attacker",
        "what",
        "epsilon, stated",
        f"proved (all: {sure})",
        "without assumptions",
        box=None,
        pad_edge=False,
    )
    for one in result.findings:
        stated = "unbounded" if math.isinf(one.epsilon) else f"{one.epsilon:.3f}"
        mark = " [bold red]contradicted[/]" if one.contradicted else ""
        proved, plain = one.proved
        table.add_row(one.attacker, one.subject, f"<= {stated}", f"{proved}{mark}", plain)
    console.print(f"[bold]{result.study}[/]: what attacks found\n")
    console.print(table)
    console.print()
    console.print(result.verdict, soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    errors.print(f"\nwrote {folder / 'audit.json'}")
