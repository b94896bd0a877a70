"""The program ``fedveil``: thin commands over the library, each imported when it is run."""

from typing import Annotated

import typer

from fedveil.cli.lazy import LazyCommand, lazy_group

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    LazyCommand("init", "fedveil.cli.studies:init", "Write a study file with every setting explained."),
    LazyCommand(
        "plan",
        "fedveil.cli.planning.plan:plan",
        "Print what a study would cost, or recommend a setting, before anything runs.",
    ),
    LazyCommand(
        "run",
        "fedveil.cli.studies:run_command",
        "Train a study's model under its guarantee and write a report.",
    ),
    LazyCommand(
        "demo",
        "fedveil.cli.studies:demo",
        "Run a whole study on the built-in synthetic images: five hospitals, epsilon 1 per patient.",
    ),
    LazyCommand(
        "predict",
        "fedveil.cli.studies:predict_command",
        "Classify images with a trained model. Unreadable images are listed, and the exit code is then 2.",
    ),
    LazyCommand("report", "fedveil.cli.studies:report", "Write the report of a finished run again."),
    LazyCommand(
        "export",
        "fedveil.cli.export:export",
        "Write a run's model as an ONNX graph or a MONAI bundle, or its model card.",
    ),
    LazyCommand(
        "sweep",
        "fedveil.cli.sweep:sweep_command",
        "Measure what each privacy setting costs in accuracy; on real data only within a declared budget.",
    ),
    LazyCommand(
        "audit",
        "fedveil.cli.audit.command:app",
        "Attack a study's own code with canary patients, and prove lower bounds on its epsilon.",
    ),
    LazyCommand("data", "fedveil.cli.data:app", "Check, fetch and split images."),
    LazyCommand(
        "encoder",
        "fedveil.cli.encoders.commands:app",
        "Register, check and choose encoders that are not built in.",
    ),
    LazyCommand("ledger", "fedveil.cli.ledger:app", "Inspect a hospital's privacy ledger."),
    LazyCommand("site", "fedveil.cli.site:site", "Run a hospital's side of a federation."),
    LazyCommand("statement", "fedveil.cli.statement:app", "Check a hospital's signed statement on a study."),
    LazyCommand("federation", "fedveil.cli.deploy:federation", "Set up a federation."),
    LazyCommand(
        "coordinate",
        "fedveil.cli.deploy:coordinate",
        "Train a study's model with the hospitals of a federation.",
    ),
)

app = typer.Typer(
    name="fedveil",
    cls=lazy_group(*COMMANDS),
    help="Train medical image classifiers across hospitals under a patient-level privacy budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from fedveil import __version__

        print(f"fedveil {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train medical image classifiers across hospitals under a patient-level privacy budget."""


def main() -> None:
    """Run the program."""
    app(prog_name="fedveil")
