"""The command by which a hospital describes its cohort."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import AsJson, Folder, load_site

__all__ = ["describe_cohort"]


def describe_cohort(
    classes: Annotated[
        str, typer.Option(help="The possible classes, comma-separated; public, independent of the cohort.")
    ],
    folder: Folder = Path("site"),
    epsilon: Annotated[float, typer.Option(help="What this spends of the site's budget.")] = 0.1,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Release noisy counts of patients per class, age band and sex, charged to the site's ledger.

    Example: fedveil site describe --classes normal,pneumonia site
    """
    from fedveil.deploy.identity import Identity, private_files
    from fedveil.deploy.site.describe import describe, own_records
    from fedveil.privacy import Ledger

    with speak_plainly():
        config, identity = load_site(folder), Identity.load(folder / "identity.key")
        records = own_records(config, identity, [name.strip() for name in classes.split(",")])
        with private_files(), Ledger(folder / "ledger.jsonl") as ledger:
            if not yes:
                console.print(
                    f"this costs epsilon {epsilon:g}; {ledger.spent():.4g} of {ledger.budget.epsilon:.4g} is spent"
                )
                typer.confirm("Release the counts?", abort=True)
            found = describe(config, ledger, records, epsilon)
        if as_json:
            print(json.dumps(found.to_dict(), indent=2))
            return
        for block, counts in found.counts.items():
            for name, value in counts.items():
                console.print(f"{block:<6} {name:<20} {value:10,.0f}", markup=False)
        console.print(f"each with noise of standard deviation {found.std:.1f}")
        console.print(f"cost   {found.guarantee}", soft_wrap=True)
