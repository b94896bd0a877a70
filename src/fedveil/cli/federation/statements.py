"""``fedveil federation statements``."""

from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly

__all__ = ["federation_statements"]


def federation_statements(
    run_directory: Annotated[Path, typer.Argument(help="A finished run of `fedveil coordinate`.")],
    files: Annotated[
        list[Path], typer.Argument(help="HTML files that hospitals made with `site statement`.")
    ],
    folder: Annotated[Path, typer.Option("--federation", help="The coordinator's folder.")] = Path(
        "coordinator"
    ),
) -> None:
    """Take the hospitals' signed statements into a run and its report; exit code 1 if one is not valid.

    Example: fedveil federation statements runs/pneumonia statement-*.html --federation lungs/coordinator
    """
    with speak_plainly():
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.coordinator.statements import take_in
        from fedveil.report import write_report

        taken, refused = take_in(Federation.load(folder), run_directory, files)
        for site in taken:
            console.print(f"{site}: valid", markup=False)
        for name, reason in refused.items():
            console.print(f"{name} is not valid: {reason}", soft_wrap=True, markup=False)
        console.print(f"see {write_report(run_directory)}", soft_wrap=True, markup=False)
        if refused:
            raise typer.Exit(1)
