"""The program ``fedveil``: thin verbs over the library."""

from typing import Annotated

import typer

from fedveil import __version__
from fedveil.cli import data, deploy, describe, ledger, studies, sweep

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedveil",
    help="Train medical image classifiers across hospitals under a patient-level privacy budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
studies.register(app)
sweep.register(app)
app.add_typer(data.app, name="data")
app.add_typer(ledger.app, name="ledger")
describe.register(deploy.site)
app.add_typer(deploy.site, name="site")
app.add_typer(deploy.federation, name="federation")
app.command("coordinate")(deploy.coordinate)


def _version(wanted: bool) -> None:
    if wanted:
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
    app()
