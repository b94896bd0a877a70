"""The commands for a federation: what a hospital runs, what the coordinator runs, and the kits for both."""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.approve import AsJson, Folder, approve, show
from fedveil.cli.describe import describe_cohort
from fedveil.cli.encoders.device import DeviceName, on_device, with_encoders_of
from fedveil.cli.output.console import OneLine, console, errors, speak_plainly
from fedveil.cli.output.progress import Bars
from fedveil.cli.output.tables import accuracy_words
from fedveil.data import check
from fedveil.deploy.identity import Identity, fingerprint, private_files
from fedveil.deploy.provisioning.kits import init_site, make_kits, renew, write_site_settings
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.listening import Listener
from fedveil.deploy.site.models import Models
from fedveil.deploy.site.offline import offline
from fedveil.deploy.site.review import review
from fedveil.deploy.site.runtime import Cohorts
from fedveil.deploy.site.service import message_limit, open_service
from fedveil.errors import DataError, FedveilError, InvalidValue
from fedveil.privacy import Ledger, verify_ledger
from fedveil.study import RunDirectory, Study, resolve, run

__all__ = ["coordinate", "federation", "site"]

site = typer.Typer(help="Run a hospital's side of a federation.", no_args_is_help=True, rich_markup_mode=None)
federation = typer.Typer(help="Set up a federation.", no_args_is_help=True, rich_markup_mode=None)


def _log_to_stderr() -> None:
    """One line per event, with the time, for the journal; other libraries log warnings only."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("fedveil").setLevel(logging.INFO)
    logging.getLogger("flwr").setLevel(logging.WARNING)


def _need_flower() -> None:
    """Refuse to begin if Flower is missing or is not the tested version."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "not installed"
    if not found.startswith("1.41."):
        raise InvalidValue(
            f"Flower is {found}",
            "messages between hospitals are carried by Flower 1.41",
            'pip install "fedveil[flower]"',
        )


@site.command("init")
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


@site.command("check")
def site_check(folder: Folder = Path("site")) -> None:
    """Check a site's settings, keys, images and ledger, and print what is left of its budget.

    Example: fedveil site check site
    """
    with speak_plainly(), offline():
        config = SiteConfig.load(folder)
        identity = Identity.load(folder / "identity.key")
        state = verify_ledger(folder / "ledger.jsonl")
        config.check_delta(state.budget.delta)
        budget, spent = state.budget, state.spent()
        console.print(f"site         {config.site.name}, fingerprint {fingerprint(identity.public)}")
        known = fingerprint(config.site.coordinator) if config.site.coordinator else "not set"
        console.print(f"coordinator  fingerprint {known}")
        _check_images(config, Cohorts(config, identity))
        console.print(
            f"budget       {budget}; epsilon {spent:.4g} spent, {max(0, budget.epsilon - spent):.4g} left"
        )
        console.print(f"policy       {config.policy}", soft_wrap=True)


def _check_images(config: SiteConfig, cohorts: Cohorts) -> None:
    """Print what the images are, every problem with them, and which offered studies cannot use them."""
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


@site.command("serve")
def site_serve(folder: Folder = Path("site"), device: DeviceName = "cpu") -> None:
    """Answer approved studies until stopped; on SIGTERM it stops after the current request.

    Example: fedveil site serve site
    """
    with speak_plainly(), offline(), on_device(device), with_encoders_of(folder):
        _log_to_stderr()
        config = SiteConfig.load(folder)
        os.environ.setdefault("FEDVEIL_CACHE", str(folder.resolve() / "cache"))
        with private_files(), Ledger(folder / "ledger.jsonl") as ledger:
            service = open_service(folder, ledger)
            listener = Listener(
                config.address(), service.answer, limit=message_limit(config) + 1024, group=config.site.group
            )
            listener.stop_on_signals()
            log = logging.getLogger("fedveil.site")
            log.info("%s listens at %s", config.site.name, config.address().where)
            for study in service.studies.all():
                service.status(study.digest)
                service.conclude(study.digest)
            listener.serve()
            service.finish()
            log.info("stopped")


@site.command("connect")
def site_connect(
    folder: Annotated[Path, typer.Argument(help="The node's folder, with its node.toml.")] = Path("node"),
) -> None:
    """Carry messages between the coordinator and this hospital's site service, until stopped.

    Example: fedveil site connect node
    """
    with speak_plainly():
        _need_flower()
    os.execv(sys.executable, [sys.executable, "-m", "fedveil.deploy.flower.node", str(folder)])


@site.command("studies")
def site_studies(folder: Folder = Path("site"), as_json: AsJson = False) -> None:
    """List the offered studies, what each would cost, and which are approved.

    Example: fedveil site studies site
    """
    with speak_plainly(), offline(), with_encoders_of(folder):
        config = SiteConfig.load(folder)
        models = Models(folder / "models")
        reviews = [review(config, listed) for listed in Studies(folder / "studies").all()]
        if as_json:
            print(json.dumps([one.to_dict() for one in reviews], indent=2))
            return
        if not reviews:
            console.print("no study has been offered yet")
        for one in reviews:
            show(one)
            console.print(f"approved   {one.listed.approved or 'no'}")
            kept = models.of(one.listed.digest)
            if kept.exists():
                console.print(f"model      {kept.folder}", soft_wrap=True)
            console.print()


site.command("approve")(approve)
site.command("describe")(describe_cohort)


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
) -> None:
    """Write one start-up kit for each hospital, and the coordinator's folder.

    Example: fedveil federation init lungs --hospital north --hospital south --address fl.example.org
    """
    with speak_plainly():
        public = make_kits(folder, name=name, hospitals=hospital, hosts=address, port=port)
        console.print(
            f"wrote {folder}/coordinator and {len(hospital)} kits: {', '.join(hospital)}", soft_wrap=True
        )
        console.print(f"fingerprint of the coordinator: {fingerprint(public)}")
        console.print(f"next: read {folder}/coordinator/README.md", soft_wrap=True)


@federation.command("renew")
def federation_renew(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = Path("coordinator"),
) -> None:
    """Renew the SuperLink's certificate, which is valid for 825 days; hospitals need not do anything.

    Example: fedveil federation renew lungs/coordinator
    """
    with speak_plainly():
        hosts = renew(folder)
        console.print(f"renewed {folder / 'superlink.pem'} for {', '.join(hosts)}", soft_wrap=True)


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
        _log_to_stderr()
        _need_flower()
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.coordinator.runner import send_again

        found = send_again(Federation.load(folder), run_directory)
        for hospital, received in found.items():
            console.print(f"{hospital} {'has the model' if received else 'was not reached, or refused it'}")
        if not all(found.values()):
            raise typer.Exit(1)


def coordinate(
    study: Annotated[
        Path, typer.Argument(help='The study file; its data source is your own test set, or "none".')
    ],
    folder: Annotated[Path, typer.Option("--federation", help="The coordinator's folder.")] = Path(
        "coordinator"
    ),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a study's model with the hospitals of a federation.

    Example: fedveil coordinate study.toml --federation coordinator
    """
    with speak_plainly():
        _log_to_stderr()
        _need_flower()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.coordinator.runner import RealHospitals
        from fedveil.report import write_report

        found = resolve(Study.load(study), study.parent)
        chosen = out or Path("runs") / found.study.name
        home = Federation.load(folder)
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
        page = write_report(directory.path)
        if as_json:
            print(json.dumps(result, indent=2))
        else:
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
