"""What is promised, what it costs, and the noise that pays for it.

Guarantee and Mechanism are the values that the rest of fedveil hands around; accounting and calibration turn
one into the other, and noise draws what a mechanism asks for. No images, no networks; the only layer that
imports dp-accounting and randomgen.
"""

from fedveil.privacy.accounting import delta_at, epsilon, gdp_mu
from fedveil.privacy.calibration import calibrate
from fedveil.privacy.guarantee import Adjacency, Guarantee, Trust, Unit, check_delta
from fedveil.privacy.mechanism import Mechanism
from fedveil.privacy.noise import gaussian, release, secure_generator

__all__ = [
    "Adjacency",
    "Guarantee",
    "Mechanism",
    "Trust",
    "Unit",
    "calibrate",
    "check_delta",
    "delta_at",
    "epsilon",
    "gaussian",
    "gdp_mu",
    "release",
    "secure_generator",
]
