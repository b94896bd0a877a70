"""The commands that set up a hospital, and check what it has."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import Folder, load_site
from fedveil.errors import DataError, FedveilError, InvalidValue

if TYPE_CHECKING:
    from fedveil.deploy.site.config import SiteConfig
    from fedveil.deploy.site.runtime import Cohorts

__all__ = ["site_check", "site_init"]


def site_init(
    folder: Folder = Path("site"),
    name: Annotated[
        str | None, typer.Option(help="The hospital's name, for a folder without site.toml.")
    ] = None,
    data: Annotated[str, typer.Option(help="The data source of its images.")] = "images/manifest.csv",
    coordinator: Annotated[str, typer.Option(help="The coordinator's public key.")] = "",
    epsilon: Annotated[float, typer.Option(help="Budget for all studies together.")] = 1.0,
    delta: Annotated[float, typer.Option(help="At most 1 / --max-units.")] = 1e-5,
    max_units: Annotated[
        int, typer.Option(help="Upper bound on the number of patients, ever; public.")
    ] = 10_000,
) -> None:
    """Make a site's signing key and ledger; with --name, a commented site.toml first.

    Example: fedveil site init site
    """
    from fedveil.deploy.identity import fingerprint
    from fedveil.deploy.provisioning.kits import init_site, write_site_settings
    from fedveil.deploy.site.config import SiteConfig
    from fedveil.privacy import verify_ledger

    with speak_plainly():
        if not (folder / "site.toml").exists():
            if name is None:
                raise InvalidValue(
                    f"{folder / 'site.toml'} does not exist",
                    "a site's folder must hold its settings",
                    "use a start-up kit's folder, or give --name to begin a new one",
                )
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_site_settings(
                folder,
                name=name,
                coordinator=coordinator,
                source=data,
                epsilon=epsilon,
                delta=delta,
                max_units=max_units,
            )
        identity = init_site(folder)
        config = SiteConfig.load(folder)
        console.print(f"{config.site.name}'s ledger is open: {verify_ledger(folder / 'ledger.jsonl').budget}")
        console.print(f"fingerprint of this site: {fingerprint(identity.public)}")
        console.print(f"next: fedveil site check {folder}", soft_wrap=True)


def site_check(folder: Folder = Path("site")) -> None:
    """Check a site's settings, keys, images and ledger, and print what is left of its budget.

    Example: fedveil site check site
    """
    from fedveil.deploy.identity import Identity, fingerprint
    from fedveil.deploy.site.offline import offline
    from fedveil.deploy.site.runtime import Cohorts
    from fedveil.privacy import verify_ledger

    with speak_plainly(), offline():
        config = load_site(folder)
        identity = Identity.load(folder / "identity.key")
        state = verify_ledger(folder / "ledger.jsonl")
        config.check_delta(state.budget.delta)
        if conflict := config.budget_conflict(state.budget):
            console.print(f"problem      {conflict}", soft_wrap=True, markup=False)
        budget, spent = state.budget, state.spent()
        console.print(f"site         {config.site.name}, fingerprint {fingerprint(identity.public)}")
        known = fingerprint(config.site.coordinator) if config.site.coordinator else "not set"
        console.print(f"coordinator  fingerprint {known}")
        _check_images(config, Cohorts(config, identity))
        console.print(
            f"budget       {budget}; epsilon {spent:.4g} spent, {max(0, budget.epsilon - spent):.4g} left"
        )
        console.print(f"policy       {config.policy}", soft_wrap=True)


def _check_images(config: "SiteConfig", cohorts: "Cohorts") -> None:
    """Print what the images are, every problem with them, and which offered studies cannot use them."""
    from fedveil.data import check
    from fedveil.deploy.site.approvals import Studies

    report = check(config.data.source, base=config.folder, **config.data.settings)
    for problem in report.problems:
        console.print(f"problem      {problem}", soft_wrap=True, markup=False)
    dataset = cohorts.dataset()
    train, test = (cohorts.own(dataset, part) for part in (dataset.train, dataset.test))
    patients = [len(set(dataset.patients[rows].tolist())) for rows in (train, test)]
    console.print(
        f"cohort       {len(train):,} training images of {patients[0]:,} patients; {patients[1]:,} are held out"
    )
    console.print(f"images       {', '.join(f'{kind} ({count:,})' for kind, count in report.modes)}")
    console.print(f"classes      {', '.join(dataset.classes)}", soft_wrap=True)
    for listed in Studies(config.folder / "studies").all():
        try:
            cohorts.dataset(listed.offer)
        except FedveilError as error:
            console.print(
                f"problem      study {listed.agreement.name}: {error}", soft_wrap=True, markup=False
            )
    if report.problems:
        raise DataError(
            f"{config.data.source} has {len(report.problems)} problems",
            "what cannot be used is left out of a study silently once it is approved",
            "correct what is named above, or leave those rows out",
        )
