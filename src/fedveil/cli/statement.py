"""Checking a hospital's statement, by anybody."""

from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _statement() -> None:
    """Check a hospital's signed statement on a study."""


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="The HTML file that `fedveil site statement` wrote.")],
    key: Annotated[
        str | None, typer.Option(help="The hospital's fingerprint as it read it to you, or its public key.")
    ] = None,
    handover: Annotated[
        list[Path] | None,
        typer.Option(help="A hand-over of the hospital's key, if it has renewed it; the oldest first."),
    ] = None,
) -> None:
    """Check that a hospital signed the file, and that nothing in it was changed; exit code 2 otherwise.

    Example: fedveil statement verify statement-north-3f2a91.html --key 1822-bc66-222a-747f-fe78-0d4c-a1e9-37b5
    """
    from fedveil.deploy.identity import fingerprint
    from fedveil.deploy.records.handover import read_hand_over
    from fedveil.deploy.records.statement import verify_statement

    with speak_plainly():
        found = verify_statement(path, key, [read_hand_over(one) for one in handover or []])
        console.print(found.title, soft_wrap=True, markup=False)
        console.print(f"signed by the key with the fingerprint {fingerprint(found.signer)}", soft_wrap=True)
        if key is None:
            console.print("compare this fingerprint with the hospital's by telephone")
