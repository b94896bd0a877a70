"""All that a hospital says, from the first greeting to the finished model, is the same whatever its images are."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.dicom_files import odd_dicom
from tests.deploy.hospital import OWN_MODELS, SITES, STUDY, Hospital, MakeHospital, record_approval
from tests.deploy.test_models import model_for, send

from fedveil.deploy.identity import signing_key
from fedveil.deploy.site.keys import Peers
from fedveil.federation import Coordinator, Declined, Message, Reply, Request
from fedveil.federation.messages import Answer, SecureReply
from fedveil.federation.wire import Frame, encode, pack, unpack

Table = list[dict[str, str]]
Spoil = Callable[[Path, Table], Table | None]
SHARES = "[privacy]\nevaluation_share = 0.1"


def write(folder: Path, change: Spoil) -> None:
    """A table of 24 grey images of 24 patients, two classes and both splits, changed as told."""
    generator, rows = np.random.default_rng(3), []
    for number in range(24):
        pixels = np.clip(generator.normal(100 + 60 * (number % 2), 25, (8, 8)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"i{number}.png")
        split, label = ("test" if number % 4 == 3 else "train"), ("normal", "ill")[number % 2]
        rows.append({"path": f"i{number}.png", "label": label, "patient": f"p{number}", "split": split})
    found = change(folder, rows)
    if found is None:
        (folder / "images.csv").write_text("no,such,columns\n1,2,3\n")
        return
    with (folder / "images.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("path", "label", "patient", "split"))
        table.writeheader()
        table.writerows(found)


def good(folder: Path, rows: Table) -> Table:
    return rows


def one_in_colour(folder: Path, rows: Table) -> Table:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
        folder / "i0.png"
    )
    return rows


def one_cut_short(folder: Path, rows: Table) -> Table:
    content = (folder / "i0.png").read_bytes()
    (folder / "i0.png").write_bytes(content[: len(content) // 2])
    return rows


def one_missing(folder: Path, rows: Table) -> Table:
    (folder / "i0.png").unlink()
    return rows


def one_unknown_label(folder: Path, rows: Table) -> Table:
    return [{**rows[0], "label": "rare"}, *rows[1:]]


def one_without_patient(folder: Path, rows: Table) -> Table:
    return [{**rows[0], "patient": ""}, *rows[1:]]


def one_in_two_splits(folder: Path, rows: Table) -> Table:
    return [{**rows[0], "patient": "p3"}, *rows[1:]]


def one_listed_twice(folder: Path, rows: Table) -> Table:
    return [*rows, {**rows[0], "patient": "p99"}]


def no_class(folder: Path, rows: Table) -> Table:
    return [row for row in rows if row["label"] == "normal"]


def nobody_tested(folder: Path, rows: Table) -> Table:
    return [row for row in rows if row["split"] == "train"]


def nobody_trained(folder: Path, rows: Table) -> Table:
    return [row for row in rows if row["split"] == "test"]


def none_readable(folder: Path, rows: Table) -> Table:
    for row in rows:
        (folder / row["path"]).write_bytes(b"no image")
    return rows


def no_rows(folder: Path, rows: Table) -> Table:
    return []


def too_many(folder: Path, rows: Table) -> Table:
    return [*rows, *({**rows[0], "path": f"./{'x/../' * n}i0.png", "patient": f"q{n}"} for n in range(40))]


def no_table(folder: Path, rows: Table) -> None:
    return None


def one_not_finite(folder: Path, rows: Table) -> Table:
    odd_dicom(folder / "i0.dcm", "nan")
    return [{**rows[0], "path": "i0.dcm"}, *rows[1:]]


ODD: tuple[Spoil, ...] = (
    no_table,
    one_in_colour,
    one_cut_short,
    one_missing,
    one_not_finite,
    one_unknown_label,
    one_without_patient,
    one_in_two_splits,
    one_listed_twice,
    no_class,
    nobody_tested,
    nobody_trained,
    none_readable,
    no_rows,
    too_many,
)


def said(frame: Frame) -> tuple[object, ...]:
    """An answer without what is drawn at random: sums by their shape, and hashes of what holds them left out."""
    head = {key: value for key, value in frame.head.items() if key != "signature"}
    if isinstance(head.get("receipt"), Mapping):
        head["receipt"] = {
            key: value for key, value in head["receipt"].items() if key not in ("answer", "hash")
        }
    if frame.kind != "answer":
        return frame.kind, head, sorted(frame.arrays), sorted(frame.blobs)
    answer = unpack(frame.blobs["answer"], Reply | Declined | SecureReply)
    if isinstance(answer, SecureReply):
        return "SecureReply", head, len(answer.keys)
    plain = type(answer).__name__, answer.release, answer.round, answer.attempt
    if isinstance(answer, Declined):
        return *plain, answer.code, head
    return *plain, answer.vector.shape, str(answer.vector.dtype), head


class Listening:
    """A transport to hospitals in this process, that writes down what the first of them says."""

    def __init__(self, hospitals: Mapping[str, Hospital], spied: str) -> None:
        self.hospitals, self.spied = hospitals, spied
        self.heard: list[object] = []

    @property
    def signing_keys(self) -> Mapping[str, bytes]:
        """Those that secure aggregation checks messages by."""
        return {name: signing_key(one.service.identity.public) for name, one in self.hospitals.items()}

    def exchange(self, requests: Mapping[str, Message]) -> dict[str, Answer]:
        answers = {}
        for site, message in requests.items():
            frame = self.hospitals[site].ask(pack(message))
            if site == self.spied:
                self.heard.append(said(frame))
            answers[site] = unpack(frame.blobs["answer"], Reply | Declined | SecureReply)
        return answers


def offer(hospital: Hospital) -> object:
    return said(hospital.ask(encode(Frame("offer", {**hospital.offer.to_dict(), "nonce": "n"}))))


def ready(hospital: Hospital) -> list[object]:
    """An offer's answer as the service begins to read the images, and a greeting's once it has ended."""
    begun = offer(hospital)
    hospital.service._opening[hospital.agreement.digest].join()
    return [begun, said(hospital.hello())]


def rounds(hospital: Hospital) -> list[object]:
    """Every release, one twice, models that diverged or that no study makes, and one that was not announced."""
    heard, attempt = [], 0
    for release in hospital.agreement.releases:
        for number in (1, release.rounds, release.rounds + 1):
            attempt += 1
            heard.append((release.name, number, attempt, hospital.start(release.name)))
        attempt += 1
        heard.append((release.name, 1, attempt, np.full(release.parameters, 0.5)))
    heard.append(
        ("training", 1, attempt + 1, np.full(hospital.agreement.release("training").parameters, 1e300))
    )
    heard.append(("training", 1, attempt, np.zeros(1)))
    return [
        said(
            hospital.ask(
                pack(
                    Request(
                        study=hospital.agreement.digest,
                        release=name,
                        round=number,
                        attempt=one,
                        participants=SITES,
                        parameters=parameters,
                    )
                )
            )
        )
        for name, number, one, parameters in heard
    ]


def transcript(hospital: Hospital) -> list[object]:
    """From the offer to a second, different model, and a service that was started again."""
    heard = [offer(hospital), said(send(hospital, model_for(hospital)))]
    record_approval(hospital.service, hospital.agreement.digest)
    heard += [*ready(hospital), *rounds(hospital)]
    for seed in (0, 0, 1):
        heard.append(said(send(hospital, model_for(hospital, seed))))
        hospital.service.finish()
    hospital.restart()
    heard += [*ready(hospital), *rounds(hospital), said(send(hospital, model_for(hospital)))]
    return heard


@pytest.fixture
def make(make_hospital: MakeHospital) -> Callable[..., Hospital]:
    """A hospital with a table of images, changed as told, which has not approved the study yet."""

    def build(change: Spoil, name: str = "north", **study: object) -> Hospital:
        settings = {"source": '"images.csv"', "max_units": 30, "min_sites": 2}
        hospital = make_hospital(name, approve=False, settings=settings, **study)
        write(hospital.folder, change)
        return hospital

    return build


@pytest.mark.parametrize(
    "template", [STUDY.replace("[privacy]", SHARES), OWN_MODELS], ids=["plain", "own models"]
)
def test_all_that_a_hospital_says_is_the_same_whatever_its_images_are(make, template):
    found = {}
    for change in (good, *ODD):
        hospital = make(change, template=template, epsilon=3.0)
        found[change.__name__] = transcript(hospital)
        close(hospital)
    assert found["good"][4][:1] == ("Reply",)
    assert {one for one in found if found[one] != found["good"]} == set()


def test_masked_rounds_are_the_same_whatever_the_images_are(make):
    """Set-up, masked sums and recovery by the real protocol; two hospitals beside it are as they should be."""
    found = {}
    study = {"trust": "secure-aggregation", "min_sites": 3, "rounds": 2}
    for change in (good, *ODD):
        hospitals = {name: make(change if name == "north" else good, name, **study) for name in SITES}
        keys = {name: one.service.identity.public for name, one in hospitals.items()}
        for name, one in hospitals.items():
            Peers(one.folder / "peers").confirm({other: key for other, key in keys.items() if other != name})
            record_approval(one.service, one.agreement.digest)
        line = Listening(hospitals, "north")
        coordinator = Coordinator(hospitals["north"].agreement, line)
        for release in hospitals["north"].agreement.releases:
            start = hospitals["north"].start(release.name)
            assert coordinator.collect(release, 1, start).survivors == SITES
        found[change.__name__] = line.heard
        for one in hospitals.values():
            close(one)
    assert {one[0] for one in found["good"]} == {"Reply", "SecureReply"}
    assert {one for one in found if found[one] != found["good"]} == set()


def close(hospital: Hospital) -> None:
    """Make room for the next hospital of this name."""
    hospital.service.finish()
    hospital.service.ledger.close()
    place = hospital.folder.parent / "done"
    place.mkdir(exist_ok=True)
    hospital.folder.rename(place / f"{hospital.folder.name}-{len(list(place.iterdir()))}")
