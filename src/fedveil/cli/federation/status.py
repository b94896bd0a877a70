"""``fedveil federation status``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import AsJson
from fedveil.errors import InvalidValue

__all__ = ["federation_status"]


def federation_status(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = Path("coordinator"),
    as_json: AsJson = False,
) -> None:
    """Report each study's hospitals, rounds and time left, and who has to do what.

    The exit code is 0 if nobody has to do anything, otherwise 1. A certificate that expires within 30 days is something
    to do.

    Example: fedveil federation status lungs/coordinator
    """
    from fedveil.deploy.coordinator.progress import progress
    from fedveil.deploy.provisioning.expiry import expiring

    with speak_plainly():
        if not (folder / "federation.toml").exists():
            raise InvalidValue(
                f"{folder / 'federation.toml'} does not exist",
                "the status is that of a coordinator's folder",
                "give the folder that `fedveil federation init` wrote",
            )
        found, ends = progress(folder), expiring(folder)
        if as_json:
            print(json.dumps([one.to_dict() for one in found], indent=2))
        for one in () if as_json else found:
            left = "" if one.seconds_left is None else f", about {one.seconds_left / 60:.1f} minutes left"
            console.print(
                f"{one.name}: {one.state}, {one.rounds} of {one.planned} rounds{left}",
                soft_wrap=True,
                markup=False,
            )
            said = (
                f"{site} {state}" + (f" (missed {one.missed[site]})" if site in one.missed else "")
                for site, state in one.hospitals.items()
            )
            console.print(f"  hospitals  {', '.join(said)}", soft_wrap=True, markup=False)
            for text in one.todo:
                console.print(f"  to do      {text}", soft_wrap=True, markup=False)
        for text in () if as_json else ends:
            console.print(f"to do: {text}", soft_wrap=True, markup=False)
        if not found and not as_json:
            console.print("no study has begun here")
    raise typer.Exit(1 if ends or any(one.todo for one in found) else 0)
