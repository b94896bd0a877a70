"""Hospitals under secure aggregation, and what an attacker at the coordinator, and at one of them, sees."""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.federation.toy import DIMENSION, Line, VectorLearner, make_agreement

from fedveil.audit.claims import MechanismClaim
from fedveil.errors import FederationError
from fedveil.federation import Answer, Coordinator, Identity, Message, Policy, Reply, Site
from fedveil.privacy import Budget, Guarantee, Ledger

__all__ = ["Federation"]

DELTA = 1e-4
ROUNDS = 50_000
POLICY = Policy(trusts=frozenset({"secure-aggregation"}))
ALL_ROUNDS = 1e7  # epsilon of as many rounds as audits need; each is judged by its own price


class Tap(Line):
    """A transport that the attacker listens to."""

    def __init__(self, sites: list[Site], silent: Collection[str]) -> None:
        super().__init__(sites, set(silent))
        self.heard: dict[str, Reply] = {}

    def exchange(self, requests: Mapping[str, Message]) -> Mapping[str, Answer]:
        answers = super().exchange(requests)
        self.heard |= {site: one for site, one in answers.items() if isinstance(one, Reply)}
        return answers


class Federation:
    """Hospitals whose sums are masked; the first one's patients are attacked.

    Args:
        sites: their number.
        silent: hospitals that drop out of every round.
        curious: one that tells the coordinator the words that it masked.
        noise: noise multiplier.
        changes: of the agreement.
    """

    def __init__(
        self,
        sites: int = 4,
        silent: Collection[str] = (),
        curious: str = "",
        noise: float = 1.0,
        **changes: object,
    ) -> None:
        target = Guarantee(ALL_ROUNDS, DELTA, "patient", "secure-aggregation")
        self.agreement = make_agreement(
            "secure-aggregation", sites, ROUNDS, noise, **{"target": target, "min_sites": 1, **changes}
        )
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._curious, self._told, self._round = curious, np.zeros(0, np.uint32), 0
        self._left: dict[bool, list[float]] = {False: [], True: []}
        keys = {name: Ed25519PrivateKey.generate() for name in self.agreement.sites}
        pinned = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self._learners, self._ledgers, made = {}, {}, []
        for name in self.agreement.sites:
            learner = VectorLearner(np.zeros((1, DIMENSION)))
            ledger = Ledger(Path(self._folder.name) / f"{name}.jsonl", Budget(2 * ALL_ROUNDS, DELTA))
            site = Site(name, learner, POLICY, ledger, Identity(keys[name], pinned))
            site.admit(self.agreement)
            self._learners[name], self._ledgers[name] = learner, ledger
            made.append(site)
            if name == curious:
                self._tell(site)
        self._tap = Tap(made, silent)
        self._coordinator = Coordinator(self.agreement, self._tap)

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for ledger in self._ledgers.values():
            ledger.close()
        self._folder.cleanup()

    def _tell(self, site: Site) -> None:
        """A curious hospital runs the protocol, and keeps the words that it masks."""
        secure = site._secure[self.agreement.digest]
        mask = secure.mask

        def told(attempt: int, words: np.ndarray, release: str) -> np.ndarray:
            self._told = words.copy()
            return mask(attempt, words, release)

        secure.mask = told  # type: ignore[method-assign]

    def total(self, rows: np.ndarray) -> np.ndarray:
        """A round's sum, less what the curious hospital knows of it; zeros if it is not opened."""
        (release,) = self.agreement.releases
        self._learners[self.agreement.sites[0]].rows = rows
        self._round += 1
        try:
            total = self._coordinator.collect(release, self._round, np.zeros(DIMENSION)).total
        except FederationError:  # too few shares of noise remain, and nothing is opened
            return np.zeros(DIMENSION)
        if self._curious:
            total = total - release.integer.decode(self._told)
        return total

    def each(self, rows: np.ndarray) -> np.ndarray:
        """One number of a round in which every coordinate has a patient of its own, if ``rows`` has one.

        Noise is independent from number to number, so a round is as many executions as there are coordinates.
        """
        there = bool(rows.any())
        if not self._left[there]:
            own = np.eye(DIMENSION) if there else np.zeros((1, DIMENSION))
            self._left[there] = list(self.total(own))
        return np.array([self._left[there].pop()])

    def masked(self, rows: np.ndarray) -> np.ndarray:
        """The masked words of the attacked hospital, as fractions of their range."""
        self.total(rows)
        return self._tap.heard[self.agreement.sites[0]].vector / 2.0**32

    def claim(self) -> MechanismClaim:
        """What the attacked hospital's ledger says that its last round cost."""
        self.total(np.zeros((1, DIMENSION)))
        last = self._ledgers[self.agreement.sites[0]].state.charges[-1]
        return MechanismClaim((last.mechanism,), DELTA)
