"""Sites in process, with real ledgers on disk, that have admitted a study's terms."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.federation.toy import DIMENSION, Federation, VectorLearner

from fedveil.federation import Agreement, Identity, Policy, Site
from fedveil.privacy import Budget, Ledger


@pytest.fixture
def federate(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Build sites that have admitted the terms."""
    opened: list[Ledger] = []

    def build(
        agreement: Agreement, *, units: int = 40, epsilon: float = 60.0, admit: bool = True
    ) -> Federation:
        generator = np.random.default_rng(5)
        sites, learners, ledgers = {}, {}, {}
        keys = {name: Ed25519PrivateKey.generate() for name in agreement.sites}
        pinned = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        for name in agreement.sites:
            learners[name] = VectorLearner(generator.normal(size=(units, DIMENSION)))
            budget = Budget(math.inf if agreement.trust == "none" else epsilon, 1e-5)
            ledgers[name] = Ledger(tmp_path / f"{name}.jsonl", budget)
            opened.append(ledgers[name])
            policy = Policy(trusts=frozenset({"site", "secure-aggregation", "server", "none"}))
            sites[name] = Site(name, learners[name], policy, ledgers[name], Identity(keys[name], pinned))
            if admit:
                sites[name].admit(agreement)
        return Federation(agreement, sites, learners, ledgers)

    yield build
    for ledger in opened:
        ledger.close()
