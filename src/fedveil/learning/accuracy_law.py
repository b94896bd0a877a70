"""How far noisy weights separate the classes; `fedveil.planning.laws` derives the formula.

    score = D / sqrt(2 (1 + a / N + (b / nu)^p)),   variance = s_0^2 + s_1^2 / (1 + (nu / b)^2),
    AUROC = Phi(score / sqrt(1 + variance))

for N units at the signal-to-noise ratio nu. Everything that predicts an accuracy uses these two functions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["law_score", "law_variance"]

Values = npt.NDArray[np.float64] | float
SMALLEST_RATIO = 1e-9


def law_score(
    separation: Values, patients: Values, noise: Values, power: Values, units: Values, ratio: Values
) -> npt.NDArray[np.float64]:
    """The separation divided by sqrt 2; all arguments broadcast.

    Args:
        separation: D.
        patients: a.
        noise: b.
        power: p.
        units: N.
        ratio: nu; infinite without noise.
    """
    faint: Any = np.asarray(noise) / np.maximum(ratio, SMALLEST_RATIO)
    lost = 1 + np.asarray(patients) / units + faint**power
    result: npt.NDArray[np.float64] = np.asarray(separation / np.sqrt(2 * lost))
    return result


def law_variance(spread: Values, scatter: Values, noise: Values, ratio: Values) -> npt.NDArray[np.float64]:
    """s squared, the variance of the score over runs.

    Args:
        spread: s_0.
        scatter: s_1.
        noise: b.
        ratio: nu.
    """
    result: npt.NDArray[np.float64] = np.asarray(
        np.square(spread) + np.square(scatter) / (1 + np.square(np.asarray(ratio) / noise))
    )
    return result
