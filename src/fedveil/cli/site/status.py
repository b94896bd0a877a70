"""The command for an administrator and their monitoring."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import AsJson, Folder, load_site

__all__ = ["site_status"]


def site_status(
    folder: Folder = Path("site"),
    as_json: AsJson = False,
    prometheus_file: Annotated[
        Path | None, typer.Option("--prometheus", help="Also write metrics to this file, for its collector.")
    ] = None,
) -> None:
    """Report in one look whether the site is in order: budget, studies, refusals, certificates.

    The exit code is 0 if all is well, 1 if a person should look at something, 2 if the site does not work.

    Example: fedveil site status site --json
    """
    from fedveil.deploy.records.status import prometheus, site_state
    from fedveil.deploy.site.offline import offline
    from fedveil.io import write_atomic

    with speak_plainly(), offline():
        found = site_state(load_site(folder))
        if prometheus_file is not None:
            metrics = prometheus(found).encode()
            write_atomic(prometheus_file, lambda file: file.write(metrics))
        if as_json:
            print(json.dumps(found.to_dict() | {"exit_code": found.exit_code}, indent=2))
        else:
            console.print(
                f"site      {found.site}; the service {'answers' if found.listening else 'is down'}"
            )
            console.print(
                f"budget    epsilon {found.spent:.4g} of {found.epsilon:.4g} spent, {found.reserved:.4g} reserved"
            )
            console.print(
                f"studies   {', '.join(f'{count} {kind}' for kind, count in found.studies.items())}"
            )
            console.print(f"refusals  {found.refusals_last_day} in the last day")
            for kind, words in (("problem", found.problems), ("warning", found.warnings)):
                for text in words:
                    console.print(f"{kind}   {text}", soft_wrap=True, markup=False)
    raise typer.Exit(found.exit_code)
