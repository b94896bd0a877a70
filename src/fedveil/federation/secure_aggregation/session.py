"""What all parties of a session must agree on; its digest is signed, so that a difference is detected."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Self

from fedveil.errors import InvalidValue
from fedveil.federation.secure_aggregation.codec import malformed
from fedveil.federation.secure_aggregation.graph import edge_probability, isolated, sparse_threshold
from fedveil.federation.secure_aggregation.shamir import Field, field_for

__all__ = ["COMPLETE_UP_TO", "MOST_SITES", "Session"]

COMPLETE_UP_TO = 64
"""With more sites than this, a session by default has a sparse graph."""

MOST_SITES = 1000
"""As many as a request may name."""

MOST_ROUNDS = 4096
"""Bounds a site's memory for a session: 64 bytes per round and neighbour."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One set-up: a fixed group of sites, and the rounds for which they exchange keys.

    Attributes:
        study: identifies the study; the digest of its agreement.
        sites: the names of all sites of the session, in the order that all use.
        first_round: number of the first round; numbers never repeat in a study, also across sessions.
        rounds: number of rounds that have keys.
        threshold: number of sites that must agree on the survivors of a round before its secrets can be opened.
        colluding: number of sites that may collude with the server without violating the guarantee.
        min_honest: the smallest number of noise shares from honest sites; it determines the noise.
        edge_probability: 1 for the complete graph; otherwise the probability that two sites are neighbours.
    """

    study: str
    sites: tuple[str, ...]
    first_round: int
    rounds: int
    threshold: int
    colluding: int
    min_honest: int
    edge_probability: float = 1.0

    @classmethod
    def of(
        cls,
        study: str,
        sites: tuple[str, ...],
        *,
        rounds: int,
        first_round: int = 1,
        threshold: int | None = None,
        colluding: int | None = None,
        min_honest: int | None = None,
        sparse: bool | None = None,
    ) -> Self:
        """A session with the defaults that docs/secure-aggregation.md explains.

        The threshold is the smallest number above two thirds of the sites. One site may collude, or one in
        twenty in a sparse graph. min_honest is the number of honest shares in the smallest round that may be opened:
        threshold - colluding, minus the sites that a sparse graph may leave isolated.

        >>> session = Session.of("study", ("a", "b", "c", "d", "e"), rounds=60)
        >>> session.threshold, session.min_honest, session.min_survivors
        (4, 3, 4)
        """
        count = len(sites)
        if sparse is None:
            sparse = count > COMPLETE_UP_TO
        if threshold is None:
            threshold = 2 * count // 3 + 1
        if colluding is None:
            colluding = max(1, count // 20) if sparse else 1
        if min_honest is None:
            min_honest = threshold - colluding - (isolated(count) if sparse else 0)
        return cls(
            study=study,
            sites=sites,
            first_round=first_round,
            rounds=rounds,
            threshold=threshold,
            colluding=colluding,
            min_honest=min_honest,
            edge_probability=edge_probability(count, colluding, threshold)
            if sparse and count <= MOST_SITES
            else 1.0,
        )

    def __post_init__(self) -> None:
        self._check_group()
        self._check_trust()

    def _check_group(self) -> None:
        count = len(self.sites)
        if not 3 <= count <= MOST_SITES or len(set(self.sites)) < count:
            raise InvalidValue(
                f"secure aggregation is asked of {count} sites: {', '.join(self.sites)[:2000]}",
                f"it needs 3 to {MOST_SITES:,} different sites; of two, each would learn the other's sum",
                'change the sites, or set privacy.trust to "site"',
            )
        if not (1 <= self.rounds <= MOST_ROUNDS and 0 <= self.first_round < 2**63):
            raise InvalidValue(
                f"the session has {self.rounds} rounds from number {self.first_round}",
                f"it may have 1 to {MOST_ROUNDS} rounds, with numbers from 0",
                "open one session after another for more rounds",
            )

    def _check_trust(self) -> None:
        count = len(self.sites)
        if not 1 <= self.colluding < 2 * self.threshold - count or self.threshold > count:
            raise InvalidValue(
                f"threshold {self.threshold} of {count} sites with {self.colluding} colluding",
                "the threshold must be above (sites + colluding) / 2, or the server could open single sites by "
                "naming different survivors to different sites; at least one site must "
                "count as colluding, as each knows its own noise",
                f"set the threshold to {2 * count // 3 + 1}, or assume fewer colluding sites",
            )
        most = count - self._without_promise
        if not 1 <= self.min_honest <= most:
            raise InvalidValue(
                f"min_honest is {self.min_honest}",
                f"it must be between 1 and {most}, the sites that are sure not to collude",
                "reduce it, or remove it for the default",
            )
        needed = edge_probability(count, self.colluding, self.threshold) if self.sparse else 1.0
        if not needed <= self.edge_probability <= 1:
            raise InvalidValue(
                f"edge_probability is {self.edge_probability}",
                f"it must be between {needed}, or sites could be cut off, and 1, the complete graph",
                "remove it for the default",
            )

    @property
    def sparse(self) -> bool:
        """Whether the graph is sparse, so that a site has only some of the others as neighbours."""
        return self.edge_probability < 1

    @property
    def field(self) -> Field:
        """Over which secrets are shared."""
        return field_for(len(self.sites))

    @property
    def min_survivors(self) -> int:
        """A round with fewer is abandoned: it would not open, or hold too little noise."""
        return max(self.threshold, self.min_honest + self._without_promise)

    @property
    def _without_promise(self) -> int:
        """Survivors whose noise does not count: they collude, or a sparse graph may leave them isolated."""
        return self.colluding + (isolated(len(self.sites)) if self.sparse else 0)

    def share_threshold(self, holders: int) -> int:
        """How many of a secret's `holders` (its own site included) must reveal their share to open it."""
        return sparse_threshold(holders) if self.sparse else self.threshold

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything above."""
        return hashlib.sha256(b"fedveil secure aggregation 2\n" + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: the opening message of a session."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`; raises FederationError or InvalidValue on anything else."""
        try:
            fields = json.loads(data)
            sites = tuple(fields.pop("sites"))
            typed = {name: type(value) for name, value in fields.items()} == _TYPES
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise malformed() from error
        if not typed or not all(isinstance(site, str) for site in sites):
            raise malformed()
        session = cls(sites=sites, **fields)
        if session.to_bytes() != data:
            raise malformed()
        return session


_TYPES = {
    "study": str,
    "first_round": int,
    "rounds": int,
    "threshold": int,
    "colluding": int,
    "min_honest": int,
    "edge_probability": float,
}
