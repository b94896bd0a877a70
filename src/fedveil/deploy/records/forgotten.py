"""Patients who withdrew: their images are never read again, and what was computed of them is deleted.

``forgotten.jsonl`` holds a keyed hash of each name (HMAC-SHA256 under the site's own secret), so the file names nobody,
and a patient who comes back with the next export of the images is still left out. What they took part in is one sealed
file each, which only the site's identity key opens.
"""

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.data import Dataset, cache_folder
from fedveil.deploy.identity import Identity, fingerprint, private_files
from fedveil.deploy.sealing import new_id, seal, unseal
from fedveil.errors import DataError, InvalidValue, Refused
from fedveil.io import write_private
from fedveil.privacy import LedgerState

__all__ = ["Forgotten", "TookPart"]

_SECRET = b"fedveil forgotten patients 1"
_PURPOSE = b"fedveil record of a forgotten patient 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TookPart:
    """What a patient took part in before they withdrew.

    Attributes:
        record: names the sealed record.
        images: the names of their images in the hospital's data.
        studies: title and epsilon of every study that was charged while their images were here.
        epsilon, delta: of everything that was charged together.
    """

    record: str
    images: tuple[str, ...]
    studies: tuple[tuple[str, float], ...]
    epsilon: float
    delta: float

    def sentences(self, unit: str) -> list[str]:
        """In words: what is gone, what remains, and what the guarantee says of it."""
        lines = [
            f"{len(self.images)} images are left out from now on, and all computed features were deleted"
        ]
        lines += [f"took part in {title} (epsilon {cost:.4g})" for title, cost in self.studies]
        if not self.studies:
            return [
                *lines,
                "no study was charged yet: nothing computed from these images has left this hospital",
            ]
        return [
            *lines,
            "what was released cannot be recalled, and models keep their noisy share of it",
            f"its guarantee still holds: adding or removing any one {unit} makes no outcome of all releases together "
            f"more than exp({self.epsilon:.4g}) times as likely, except with probability {self.delta:.4g}",
        ]


class Forgotten:
    """The patients of one site who withdrew.

    Args:
        folder: the site's.
        identity: the site's key.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._folder, self._identity = folder, identity
        self._path = folder / "forgotten.jsonl"

    @property
    def version(self) -> int:
        """Changes whenever a patient is added."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def names(self) -> frozenset[str]:
        """The keyed hashes."""
        try:
            lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
            found, keys = {str(line["patient"]) for line in lines}, {str(line["key"]) for line in lines}
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidValue(
                f"{self._path} cannot be read ({error})",
                "it names the patients who withdrew, and no image may be read without it",
                "restore it from a backup",
            ) from None
        if keys - {own := fingerprint(self._identity.public)}:
            raise InvalidValue(
                f"{self._path} was made with another identity key than {own}",
                "the hashes in it need the key that they were made with, or nobody is left out",
                "restore that identity.key",
            )
        return frozenset(found)

    def without(self, dataset: Dataset, prefix: str = "") -> Dataset:
        """The data set without the patients who withdrew; ``prefix`` is what it puts before each patient's name."""
        names = self.names()
        if not names:
            return dataset
        gone = np.array(
            [
                str(name).startswith(prefix) and self._hash(str(name).removeprefix(prefix)) in names
                for name in dataset.patient_names
            ],
            dtype=bool,
        )
        return dataset.subset(np.flatnonzero(~gone[dataset.patients])) if gone.any() else dataset

    def forget(self, patient: str, dataset: Dataset, state: LedgerState) -> TookPart:
        """Seal what a patient took part in, delete what was computed, and leave them out from now on.

        The name is added last: a patient who is listed has a record, and their features are gone. After an
        interruption, or for a patient who is listed already, the same call does what is missing.

        Args:
            patient: named as in the data.
            dataset: the site's images, with those of patients who withdrew.
            state: of the ledger.

        Raises:
            DataError: no image names this patient, and nobody of this name withdrew.
            Refused: what was computed cannot be deleted.
        """
        listed = self._hash(patient) in self.names()
        record = self._record(patient) if listed else None
        if record is None:
            record = self._took_part(patient, dataset, state, listed=listed)
        with private_files():
            self._seal(patient, record)
            self.purge()
            if not listed:
                self._add(patient)
        return record

    def _took_part(self, patient: str, dataset: Dataset, state: LedgerState, *, listed: bool) -> TookPart:
        rows = [
            row for row, code in enumerate(dataset.patients) if str(dataset.patient_names[code]) == patient
        ]
        if not listed and not (rows and dataset.patients_known):
            raise DataError(
                f"no image here names the patient {patient!r}",
                "a patient is named as in the data, exactly",
                "check the name in the manifest",
            )
        return TookPart(
            record=self._hash(patient)[:16],
            images=tuple(str(dataset.image_names[row]) for row in rows),
            studies=tuple((study, state.spent(study)) for study in state.studies),
            epsilon=state.spent(),
            delta=state.delta,
        )

    def purged(self) -> tuple[Path, ...]:
        """What `purge` deletes: the site's cache, and what this process computes if its cache is elsewhere.

        Downloads in a cache elsewhere are kept.
        """
        own, used = self._folder / "cache", cache_folder()
        if used.resolve() == own.resolve():
            return (own,)
        return own, used / "features", used / "digests"

    def purge(self) -> None:
        """Delete all features; those of the other patients are computed again.

        Raises:
            Refused: something cannot be deleted.
        """
        for folder in self.purged():
            while folder.exists():
                try:
                    shutil.rmtree(folder)
                except FileNotFoundError:
                    continue  # another process deletes it too
                except OSError as error:
                    raise Refused(
                        f"{error.filename or folder} cannot be deleted ({error.strerror})",
                        "features of a patient who withdrew must not stay",
                        "make it writable for the site's user, and repeat `fedveil site forget`",
                    ) from None

    def records(self) -> Iterator[dict[str, Any]]:
        """What each forgotten patient took part in, opened with the site's key."""
        for path in sorted((self._folder / "forgotten").glob("*.sealed")):
            yield self._opened(path)

    def _opened(self, path: Path) -> dict[str, Any]:
        opened = unseal(path.read_bytes(), self._identity, sender=self._identity.public, purpose=_PURPOSE)
        return dict(json.loads(opened.body or b"{}"))

    def _record(self, patient: str) -> TookPart | None:
        """The sealed record of a patient; None if there is none."""
        record = self._hash(patient)[:16]
        try:
            values = self._opened(self._folder / "forgotten" / f"{record}.sealed")
        except FileNotFoundError:
            return None
        return TookPart(
            record=record,
            images=tuple(values["images"]),
            studies=tuple((str(title), float(cost)) for title, cost in values["studies"]),
            epsilon=values["epsilon"],
            delta=values["delta"],
        )

    def _hash(self, patient: str) -> str:
        return hmac.new(self._identity.secret(_SECRET), patient.encode(), hashlib.sha256).hexdigest()

    def _add(self, patient: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            line = {"patient": self._hash(patient), "key": fingerprint(self._identity.public)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _seal(self, patient: str, record: TookPart) -> None:
        folder = self._folder / "forgotten"
        folder.mkdir(mode=0o700, exist_ok=True)
        values: dict[str, Any] = {"patient": patient, "images": record.images, "studies": record.studies}
        values |= {"epsilon": record.epsilon, "delta": record.delta}
        body = json.dumps(values).encode()
        sealed = seal(body, self._identity, to=self._identity.public, purpose=_PURPOSE, message=new_id())
        write_private(folder / f"{record.record}.sealed", sealed)
