"""A hospital's images, read and asked as in a study, with the noise left off.

Everything between the file and the sum is the product's own: reader, hold-out, task, learner, `Contributions`. Two data
sets that differ in one unit are opened this way, and their exact sums compared: by fixed lists of parameters in
`checks`, by a search for the worst in `hunt`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tests.deploy.hospital import SITES, edit
from tests.neighbours.cohorts import SIZE, Cohort

from fedveil.data import Dataset
from fedveil.data.formats.folder import guessed_layout
from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.provisioning.kits import init_site, write_site_settings
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.runtime import Cohorts
from fedveil.federation import Agreement, LocalSteps, Release, Site
from fedveil.federation.contributions import Contributions
from fedveil.learning import HeldOut, Learner
from fedveil.privacy import Ledger
from fedveil.study import Study
from fedveil.study.pipeline import Task, model_of

STUDY = """
[study]
name = "neighbours"
[data]
source = "none"
classes = {classes}
channels = {channels}
image_size = 16
{data}
[model]
{model}
[training]
rounds = 10
{training}
[privacy]
epsilon = {epsilon}
delta = 1e-4
trust = "{trust}"
unit = "{unit}"
{privacy}
[federation]
max_units = 2000
"""
PIXELS = 'features = "pixels"\nwhitened = false'
SHARES = "evaluation_share = 0.1"
KEY = "5a" * 32
"""The hospital's signing key, from which follows who is held out: the same at every run."""

Vector = np.ndarray


def make_study(
    classes: tuple[str, ...],
    unit: str = "patient",
    model: str = PIXELS,
    training: str = "",
    privacy: str = SHARES,
    trust: str = "site",
    channels: int = 1,
    data: str = "",
    epsilon: str = "8.0",
) -> Study:
    names = "[" + ", ".join(f'"{name}"' for name in classes) + "]"
    values = {
        "data": data,
        "epsilon": epsilon,
        "unit": unit,
        "model": model,
        "training": training,
        "privacy": privacy,
        "trust": trust,
    }
    return Study.parse(STUDY.format(classes=names, channels=channels, **values))


def make_offer(study: Study) -> Offer:
    data = study.data
    images = Dataset.empty(data.classes, channels=data.channels or 1, image_size=SIZE, task=data.meaning)
    return Offer.make(study, SITES, images)


@dataclass(frozen=True, eq=False)
class Opened:
    """One data set behind a site's learner."""

    contributions: Contributions
    task: Task
    train: Vector
    test: Vector
    site: Site | None = None

    @property
    def learner(self) -> Learner:
        return self.contributions.hospital.learner

    @property
    def held_out(self) -> HeldOut | None:
        return self.contributions.hospital.held_out

    def owners(self) -> list[str]:
        """Whose each image is, by a name that is the same in both data sets: MedMNIST's layout numbers images anew."""
        data, unit = self.task.dataset, self.task.study.privacy.unit
        if unit == "patient":
            return [data.patient_names[code] for code in data.patients]
        if unit == "site":
            return ["site"] * len(data)
        if not data.image_names[0].startswith(("train/", "test/")):
            return list(data.image_names)
        seen: Counter[str] = Counter()
        named = []
        for digest in data.images.digest(np.arange(len(data))):
            named.append(f"{digest} {seen[digest]}")
            seen[digest] += 1
        return named

    def names(self, rows: Vector) -> list[str]:
        """Units by the number that the learner knows them by."""
        owners = self.owners()
        found = [owners[row] for row in rows]
        return found if self.task.study.privacy.unit == "image" else sorted(set(found))

    def ask(self, release: Release, parameters: Vector) -> tuple[Vector, bool]:
        """The exact sum, and whether it was given up, which no image may decide."""
        with np.errstate(all="ignore"), _given_up() as given_up:
            total = self.contributions.of(release, parameters, private=True)
        return total, bool(given_up)

    def of_units(self, release: Release, parameters: Vector, units: Vector) -> Vector:
        """What these units contribute, as where they are all that was sampled."""
        with np.errstate(all="ignore"):
            return release.query.contribution(
                self.contributions.hospital, parameters, release.mechanism.clip_norm, units
            )


@contextmanager
def _given_up() -> Iterator[list[str]]:
    """Lines in the site's log that say that a sum was given up."""
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.addFilter(lambda record: "nothing but noise" in record.getMessage())
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("fedveil.site")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


class Hospital:
    """One hospital's folder, key and ledger, whose images are exchanged; `Cohorts` reads them anew each time.

    Args:
        folder: an empty one.
        write: writes a cohort into a folder and returns the source.
        settings: keys of site.toml.
    """

    def __init__(
        self, folder: Path, write: Callable[[Path, Cohort], str], unit: str, **settings: object
    ) -> None:
        self.folder, self._write = folder, write
        write_site_settings(folder, name=SITES[0], epsilon=100.0, delta=1e-4, max_units=2000)
        methods = '["gradient", "averaging", "one-shot"]'
        bounds = {"test_fraction": 0.3, "max_dimension": 20_000_000}
        edit(folder / "site.toml", unit=f'"{unit}"', methods=methods, **{**bounds, **settings})
        init_site(folder)
        (folder / "identity.key").write_text(KEY + "\n")
        self.loads = 0

    def cohorts(self, images: Cohort) -> Cohorts:
        self.loads += 1
        folder = Path(f"images-{self.loads}")
        (self.folder / folder).mkdir()
        source = folder / self._write(self.folder / folder, images)
        whole = self.folder / source
        layout = guessed_layout(whole) if whole.is_dir() else ""  # what a person sets, once
        edit(self.folder / "site.toml", source=f'"{source}"', layout=f'"{layout}"')
        return Cohorts(SiteConfig.load(self.folder), Identity.load(self.folder / "identity.key"))

    def open(self, offer: Offer, agreement: Agreement, images: Cohort) -> Opened:
        cohorts = self.cohorts(images)
        with Ledger(self.folder / "ledger.jsonl") as ledger:
            site = cohorts.open(offer, agreement, ledger)
        task = cohorts.task(offer)
        rows = [cohorts.own(task.dataset, part) for part in (task.dataset.train, task.dataset.test)]
        return Opened(site._contributions, task, *rows, site=site)


def without_noise(release: Release) -> Release:
    """The release with its noise off; of local steps just the first, since noise follows each of them."""
    mechanism = replace(
        release.mechanism, noise_multiplier=0.0, sampling_rate=1.0, epsilon_slack=0.0, delta_slack=0.0
    )
    if not release.noise_inside:
        return replace(release, mechanism=mechanism, integer=None)
    once = LocalSteps(steps=1, learning_rate=1.0, units=1.0, reach=1e9)
    return replace(
        release, mechanism=mechanism.with_steps(1), integer=None, query=replace(release.query, local=once)
    )


def start(study: Study, release: Release) -> Vector:
    """Parameters before training, which a site accepts."""
    if not release.parameters:
        return np.empty(0)
    classes = study.data.classes
    model = model_of(study, Dataset.empty(classes, channels=1, image_size=SIZE))
    before = np.full(release.parameters - model.parameters, 1 / len(classes))
    return np.concatenate([before, model.join(None, model.initial())])
