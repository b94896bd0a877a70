"""A federation in a box: real clients and a real server that exchange bytes, and a test in between."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedveil.errors import Refused
from fedveil.federation.secure_aggregation import (
    Aggregation,
    MaskedInput,
    SecureAggregationClient,
    SecureAggregationServer,
    Session,
    establish,
    unmask,
)
from fedveil.federation.secure_aggregation.masks import Words


@dataclass
class HighWaterMark:
    """What a site's ledger does for the protocol: it outlives the client."""

    mark: int = -1

    def claim(self, round_number: int) -> None:
        if round_number <= self.mark:
            raise Refused(
                f"round {round_number} was claimed before", "a round is run once", "run the next one"
            )
        self.mark = round_number


@dataclass
class Federation:
    """Sites, clients and server of one session."""

    session: Session
    identities: Mapping[str, Ed25519PrivateKey]
    marks: Mapping[str, HighWaterMark]
    clients: dict[str, SecureAggregationClient] = field(default_factory=dict)
    server: SecureAggregationServer = field(init=False)

    def __post_init__(self) -> None:
        self.server = SecureAggregationServer(self.session, self.pinned)
        for site in self.session.sites:
            self.clients[site] = self.client(site)

    @property
    def sites(self) -> tuple[str, ...]:
        return self.session.sites

    @property
    def pinned(self) -> dict[str, bytes]:
        return {site: key.public_key().public_bytes_raw() for site, key in self.identities.items()}

    def client(self, site: str) -> SecureAggregationClient:
        """A client as a site makes one when it starts: only identity and high-water mark have survived."""
        mark = self.marks[site]
        return SecureAggregationClient(
            self.session, site, identity=self.identities[site], pinned=self.pinned, claim=mark.claim
        )

    def exchange(self, messages: Mapping[str, bytes], silent: Iterable[str] = ()) -> dict[str, bytes]:
        opening = self.session.to_bytes()
        return {
            site: self.clients[site].announce().to_bytes()
            if message == opening
            else self.clients[site].reply(message)
            for site, message in messages.items()
            if site not in silent
        }

    def establish(self) -> "Federation":
        establish(self.server, self.exchange)
        return self

    def masked(self, site: str, round_number: int, words: Words) -> MaskedInput:
        """A site's masked words after a journey as bytes; `words` stay as they are."""
        sent = self.clients[site].masked_input(round_number, words.copy())
        return MaskedInput.from_bytes(sent.to_bytes())

    def collect(self, round_number: int, words: Mapping[str, Words]) -> Aggregation:
        """The first exchange of a round, with the sites that have words."""
        aggregation = self.server.open(round_number)
        for site in words:
            aggregation.add(self.masked(site, round_number, words[site]))
        return aggregation

    def run(self, round_number: int, words: Mapping[str, Words], *, silent: Iterable[str] = ()) -> Words:
        """A round: sites without words are lost, `silent` ones do not answer the second exchange."""
        aggregation = self.collect(round_number, words)
        return unmask(aggregation, lambda messages: self.exchange(messages, silent))


@pytest.fixture(scope="session")
def federation() -> Callable[..., Federation]:
    """Makes a federation of so many sites, set up unless told otherwise."""

    def make(sites: int, *, rounds: int = 3, ready: bool = True, **settings: object) -> Federation:
        names = tuple(f"site-{number}" for number in range(1, sites + 1))
        made = Federation(
            Session.of("study", names, rounds=rounds, **settings),
            {name: Ed25519PrivateKey.generate() for name in names},
            {name: HighWaterMark() for name in names},
        )
        return made.establish() if ready else made

    return make


@pytest.fixture(scope="session")
def words() -> Callable[..., dict[str, Words]]:
    """Random words for some sites."""

    def make(sites: Iterable[str], length: int = 7, seed: int = 0) -> dict[str, Words]:
        generator = np.random.default_rng(seed)
        return {site: generator.integers(0, 2**32, length, dtype=np.uint32) for site in sites}

    return make


@pytest.fixture(scope="session")
def modular_sum() -> Callable[[Mapping[str, Words], Iterable[str]], Words]:
    """The sum of some sites' words modulo 2^32, in Python's integers."""

    def make(given: Mapping[str, Words], sites: Iterable[str]) -> Words:
        columns = zip(*(given[site].tolist() for site in sites), strict=True)
        return np.array([sum(column) % 2**32 for column in columns], dtype=np.uint32)

    return make
