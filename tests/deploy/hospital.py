"""Small hospitals for tests: images that a linear head can learn, a folder each, and sealed messages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedveil import __version__
from fedveil.data import Dataset, load
from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.provisioning.kits import init_site, write_site_settings
from fedveil.deploy.sealing import FROM_COORDINATOR, FROM_SITE, new_id, seal, unseal
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.service import SiteService
from fedveil.federation import Agreement, Declined, Reply, Request
from fedveil.federation.messages import SecureReply
from fedveil.federation.wire import Frame, decode, encode, pack, unpack
from fedveil.privacy import Decision, Ledger, LedgerState, verify_ledger
from fedveil.study import Study
from fedveil.study.pipeline import model_of

SITES = ("north", "south", "west")
STUDY = """
[study]
name = "{name}"
[data]
source = "{source}"
image_size = 8
[model]
features = "pixels"
[training]
rounds = {rounds}
[privacy]
epsilon = {epsilon}
delta = 1e-3
trust = "{trust}"
[federation]
min_sites = {min_sites}
"""
NETWORK = STUDY.replace('features = "pixels"', 'network = "cnn"')
"""The same study, which trains a network."""


IMAGES = 'source = "{source}"', 'source = "none"\nclasses = ["normal", "ill"]\nchannels = 1'
NO_IMAGES = STUDY.replace(*IMAGES)
"""The same by a coordinator who has no images at all."""
OWN_MODELS = STUDY.replace("[training]", "[training]\nunits = 150").replace(
    "[privacy]", "[privacy]\npersonal_share = 0.3\npersonal_calibration_share = 0.1"
)
"""The same with a model and a threshold of each hospital's own."""


def write_images(path: Path, count: int, seed: int) -> Path:
    """Grey images of two classes; the ill ones have a bright square."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.normal(100, 25, (count, 8, 8))
    images[labels == 1, 2:6, 2:6] += 60
    np.savez(
        path,
        images=np.clip(images, 0, 255).astype(np.uint8),
        labels=labels,
        patient=np.arange(count),
        classes=np.array(["normal", "ill"]),
    )
    return path


def study_text(
    name: str = "toy",
    source: str = "test.npz",
    rounds: int = 4,
    trust: str = "site",
    epsilon: float = 2.0,
    min_sites: int = 2,
    template: str = STUDY,
) -> str:
    values = {"rounds": rounds, "trust": trust, "epsilon": epsilon, "min_sites": min_sites}
    return template.format(name=name, source=source, **values)


def edit(path: Path, **changes: object) -> None:
    """Set keys of a TOML file that stand at the beginning of a line."""
    lines = path.read_text().splitlines()
    for key, value in changes.items():
        kept = [line for line in lines if not line.startswith((f"{key} =", f"#{key} ="))]
        place = next(i for i, line in enumerate(lines) if line.startswith((f"{key} =", f"#{key} =")))
        lines = [*kept[:place], f"{key} = {value}", *kept[place:]]
    path.write_text("\n".join(lines) + "\n")


@dataclass
class Hospital:
    """One hospital's service in this process, and the coordinator's key to seal messages for it."""

    folder: Path
    coordinator: Identity
    service: SiteService
    offer: Offer
    agreement: Agreement

    def ask(self, message: bytes, signer: Identity | None = None) -> Frame:
        """What the service answers to a body sealed by the coordinator, or by another signer."""
        return self.open(self.service.answer(self.seal(message, signer)))

    def seal(
        self, message: bytes, signer: Identity | None = None, purpose: bytes = FROM_COORDINATOR
    ) -> bytes:
        """A body as the coordinator, or another signer, sends it to this hospital."""
        to = self.service.identity.public
        return seal(message, signer or self.coordinator, to=to, purpose=purpose, message=new_id())

    def open(self, answer: bytes) -> Frame:
        sender = self.service.identity.public
        return decode(unseal(answer, self.coordinator, sender=sender, purpose=FROM_SITE).body)

    def round(self, number: int = 1, attempt: int = 1, **changes: object) -> Reply | Declined | SecureReply:
        """What the service answers to a request for one round of training."""
        frame = self.ask(pack(self.request(number, attempt, **changes)))
        return unpack(frame.blobs["answer"], Reply | Declined | SecureReply)

    def request(self, number: int = 1, attempt: int = 1, **changes: object) -> Request:
        values: dict[str, object] = {
            "study": self.agreement.digest,
            "release": self.agreement.main.name,
            "round": number,
            "attempt": attempt,
            "participants": SITES,
            "parameters": self.start(),
        }
        return Request(**{**values, **changes})

    def start(self, release: str | None = None) -> np.ndarray:
        """Parameters before training, which a site accepts; for the main release where none is named."""
        length = (self.agreement.release(release) if release else self.agreement.main).parameters
        if not length:
            return np.empty(0)
        data = self.offer.study.data
        empty = Dataset.empty(self.offer.classes, channels=self.offer.channels, image_size=data.image_size)
        model = model_of(self.offer.study, empty)
        frequencies = np.full(length - model.parameters, 1 / model.classes)
        return np.concatenate([frequencies, model.join(None, model.initial())])

    def hello(self, nonce: str = "n", receipt: dict[str, object] | None = None) -> Frame:
        head = {"study": self.agreement.digest, "nonce": nonce, "receipt": receipt, "version": __version__}
        return self.ask(encode(Frame("hello", head)))

    @property
    def ledger(self) -> LedgerState:
        return verify_ledger(self.folder / "ledger.jsonl")

    def restart(self) -> None:
        """A new service on the same folder, as after a kill."""
        self.service.finish()
        self.service.ledger.close()
        self.service = start_service(self.folder)


def start_service(folder: Path) -> SiteService:
    config = SiteConfig.load(folder)
    identity = Identity.load(folder / "identity.key")
    return SiteService(config, identity, Ledger(folder / "ledger.jsonl"))


def set_up(base: Path, coordinator: Identity, name: str = "north", **changes: object) -> Path:
    """A hospital's folder: images, settings, key, ledger."""
    folder = base / name
    folder.mkdir()
    write_images(folder / "images.npz", 60, seed=SITES.index(name))
    write_site_settings(
        folder,
        name=name,
        coordinator=coordinator.public,
        source="images.npz",
        epsilon=20.0,
        delta=1e-3,
        max_units=1000,
    )
    edit(folder / "site.toml", **{"test_fraction": 0.0, **changes})
    init_site(folder)
    return folder


def make_offer(base: Path, **values: object) -> Offer:
    """A study between the three hospitals, as the coordinator would offer it."""
    test = write_images(base / "test.npz", 40, seed=9)
    study = Study.parse(study_text(source=str(test), **values))
    return Offer.make(study, SITES, load(str(test), image_size=8, test_fraction=0.0))


WHO = {"by": "Dr. A. Lind", "role": "privacy officer"}


def record_approval(service_or_studies: SiteService | Studies, digest: str) -> None:
    """Record an approval, as the command does."""
    studies = getattr(service_or_studies, "studies", service_or_studies)
    studies.decide(Decision(act="approved", subject=digest, **WHO))


def record_withdrawal(service: SiteService, digest: str) -> None:
    service.studies.decide(Decision(act="withdrawn", subject=digest, reason="the purpose changed", **WHO))


MakeHospital = Callable[..., Hospital]
