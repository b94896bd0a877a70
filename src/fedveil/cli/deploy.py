"""The commands for a federation: what the coordinator runs, and the kits for every party."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedveil.cli.engines import need_engine
from fedveil.cli.federation.renew import federation_certificates, federation_confirm, federation_renew
from fedveil.cli.federation.serve import federation_serve
from fedveil.cli.federation.statements import federation_statements
from fedveil.cli.federation.status import federation_status
from fedveil.cli.output.console import console, errors, speak_plainly
from fedveil.cli.output.logs import LogFormat, log_to_stderr
from fedveil.cli.site import site
from fedveil.cli.site.options import AsJson
from fedveil.errors import FedveilError

__all__ = ["coordinate", "federation", "site"]

federation = typer.Typer(help="Set up a federation.", no_args_is_help=True, rich_markup_mode=None)


@federation.command("init")
def federation_init(
    folder: Annotated[Path, typer.Argument(help="A new folder for the kits.")],
    hospital: Annotated[list[str], typer.Option(help="A hospital's name; once for each.")],
    address: Annotated[
        list[str],
        typer.Option(help="Host name or address of the coordinator; hospitals connect to the first."),
    ],
    name: Annotated[str, typer.Option(help="The federation's name.")] = "federation",
    port: Annotated[int, typer.Option(help="Port that hospitals connect to.")] = 9443,
    engine: Annotated[
        Literal["flower", "nvflare"], typer.Option(help="What carries messages; the kits are for it.")
    ] = "flower",
) -> None:
    """Write one start-up kit for each hospital, and the coordinator's folder.

    Example: fedveil federation init lungs --hospital north --hospital south --address fl.example.org
    """
    from fedveil.deploy.identity import fingerprint
    from fedveil.deploy.provisioning.kits import make_kits

    with speak_plainly():
        public = make_kits(folder, name=name, hospitals=hospital, hosts=address, port=port, engine=engine)
        console.print(
            f"wrote {folder}/coordinator and {len(hospital)} kits: {', '.join(hospital)}", soft_wrap=True
        )
        console.print(f"fingerprint of the coordinator: {fingerprint(public)}")
        console.print(f"next: read {folder}/coordinator/README.md", soft_wrap=True)


federation.command("serve")(federation_serve)
federation.command("status")(federation_status)
federation.command("statements")(federation_statements)
federation.command("renew")(federation_renew)
federation.command("confirm")(federation_confirm)
federation.command("certificates")(federation_certificates)


@federation.command("send")
def federation_send(
    run_directory: Annotated[Path, typer.Argument(help="A finished run of `fedveil coordinate`.")],
    folder: Annotated[Path, typer.Option("--federation", help="The coordinator's folder.")] = Path(
        "coordinator"
    ),
) -> None:
    """Send the model of a finished run to hospitals that could not be reached when it ended.

    Example: fedveil federation send runs/pneumonia --federation lungs/coordinator
    """
    with speak_plainly():
        log_to_stderr()
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.coordinator.runner import send_again

        home = Federation.load(folder)
        need_engine(home.table.engine)
        found = send_again(home, run_directory)
        for hospital, received in found.items():
            console.print(f"{hospital} {'has the model' if received else 'was not reached, or refused it'}")
        if not all(found.values()):
            raise typer.Exit(1)


@federation.command("receipts")
def federation_receipts(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = Path("coordinator"),
) -> None:
    """Check the signature of every stored receipt.

    Example: fedveil federation receipts lungs/coordinator
    """
    with speak_plainly():
        from fedveil.deploy.coordinator.hospitals import Federation

        home = Federation.load(folder)
        for hospital, key in home.keys().items():
            signed, unsigned = home.receipts().verify(hospital, key, *home.former(hospital))
            earlier = f", {unsigned} of version 0.1 without a signature" if unsigned else ""
            console.print(f"{hospital} signed {signed} receipts{earlier}", soft_wrap=True)


def coordinate(
    study: Annotated[
        Path, typer.Argument(help='The study file; its data source is your own test set, or "none".')
    ],
    folder: Annotated[Path, typer.Option("--federation", help="The coordinator's folder.")] = Path(
        "coordinator"
    ),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How the log is written.")] = "text",
    as_json: AsJson = False,
) -> None:
    """Train a study's model with the hospitals of a federation.

    Example: fedveil coordinate study.toml --federation coordinator
    """
    with speak_plainly():
        log_to_stderr(log_format)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from fedveil.cli.output.progress import Bars
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.coordinator.runner import RealHospitals
        from fedveil.deploy.provisioning.expiry import expiring
        from fedveil.study import RunDirectory, Study, resolve, run

        found = resolve(Study.load(study), study.parent)
        chosen = out or Path("runs") / found.study.name
        home = Federation.load(folder)
        need_engine(home.table.engine)
        for text in expiring(folder):
            errors.print(f"warning: {text}", soft_wrap=True, markup=False)
        directory = (
            RunDirectory.reopen(chosen, found)
            if resume
            else RunDirectory.create(chosen, found, simulated=False)
        )
        try:
            with Bars(quiet=as_json) as bars:
                result = run(directory, RealHospitals(home, _say), progress=bars)
        except (FedveilError, OSError):
            if not resume:
                directory.discard_unstarted()
            raise
        from fedveil.report import write_report  # here, since a coordinator waits for days without its charts

        _print_result(result, write_report(directory.path), as_json)


def _print_result(result: Mapping[str, Any], page: Path, as_json: bool) -> None:
    from fedveil.cli.output.tables import accuracy_words

    if as_json:
        print(json.dumps(result, indent=2))
        return
    accuracy = accuracy_words(result["metrics"])
    console.print(f"finished {result['rounds']} rounds, {accuracy}; see {page}", soft_wrap=True)
    for note in result["notes"]:
        errors.print(f"note: {note}", soft_wrap=True, markup=False)


def _say(status: Mapping[str, str]) -> None:
    errors.print(
        "hospitals: " + ", ".join(f"{site} {state}" for site, state in status.items()),
        soft_wrap=True,
        markup=False,
    )
