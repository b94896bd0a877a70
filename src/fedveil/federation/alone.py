"""Releases that a hospital makes outside studies: charged to its ledger first, with all of the noise."""

import numpy as np

from fedveil.federation.contributions import Contributions
from fedveil.federation.noise import Calibrated, LocalNoise
from fedveil.federation.queries import HospitalUnits, NoisySum, Query
from fedveil.federation.release import Release
from fedveil.privacy import Guarantee, Ledger, calibrate, secure_generator

__all__ = ["release_alone"]

ALONE = "released by the hospital itself"
"""The ledger title of such charges instead of a study's; studies' titles end in a digest, so none equals it."""


def release_alone(
    query: Query, hospital: HospitalUnits, ledger: Ledger, *, site: str, length: int, epsilon: float
) -> NoisySum:
    """Charge one sum of a query durably, at this epsilon and the ledger's delta, and then compute it.

    Raises:
        BudgetExceeded: the ledger has no room; nothing was charged and nothing computed.
    """
    target = Guarantee(epsilon, ledger.budget.delta, ledger.budget.unit, "site")
    mechanism = calibrate(target, steps=1, clip_norm=query.bound(1.0))
    release = Release(query=query, mechanism=mechanism, dimension=length, parameters=0)
    ledger.reserve(mechanism, study=ALONE, trust="site", label=query.name, alone=mechanism)
    generator, nothing = secure_generator(), np.empty(0)
    total = Contributions(site, hospital, generator).of(release, nothing, private=True)
    noise = LocalNoise()
    noisy = noise.protect(total, Calibrated(mechanism), generator)
    return NoisySum(noisy, noise.variance(mechanism, 1))
