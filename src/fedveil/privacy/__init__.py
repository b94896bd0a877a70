"""Guarantees, their cost, and the noise that provides them.

Guarantee and Mechanism are the values that the rest of fedveil uses; accounting and calibration convert between
them; noise draws a mechanism's noise; risk states in plain words what a guarantee allows an attacker; a site's
ledger records everything it released and refuses what its budget does not cover. No images, no networks; the only
layer that imports dp-accounting and randomgen.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.privacy.accounting.composition import delta_at, epsilon, gdp_mu, is_mixture
    from fedveil.privacy.accounting.integer import IntegerMechanism, Words, calibrate_integer
    from fedveil.privacy.calibration import calibrate
    from fedveil.privacy.guarantee import Adjacency, Guarantee, Trust, Unit, check_delta
    from fedveil.privacy.ledger.chain import Head, restore_head
    from fedveil.privacy.ledger.charges import Budget, Charge, LedgerState, read_ledger, verify_ledger
    from fedveil.privacy.ledger.decisions import Decision
    from fedveil.privacy.ledger.ledger import Ledger
    from fedveil.privacy.mechanism import Mechanism
    from fedveil.privacy.noise import gaussian, release, secure_generator
    from fedveil.privacy.risk import Risk, most_true_positives, operational_risk

__all__ = [
    "Adjacency",
    "Budget",
    "Charge",
    "Decision",
    "Guarantee",
    "Head",
    "IntegerMechanism",
    "Ledger",
    "LedgerState",
    "Mechanism",
    "Risk",
    "Trust",
    "Unit",
    "Words",
    "calibrate",
    "calibrate_integer",
    "check_delta",
    "delta_at",
    "epsilon",
    "gaussian",
    "gdp_mu",
    "is_mixture",
    "most_true_positives",
    "operational_risk",
    "read_ledger",
    "release",
    "restore_head",
    "secure_generator",
    "verify_ledger",
]

__getattr__, __dir__ = on_first_use(__name__)
