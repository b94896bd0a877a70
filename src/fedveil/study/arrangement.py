"""A federation and its alternatives: where the images are during training.

An arrangement consists of one training run, or of one per hospital if each trains alone. Reports of runs and sweeps
both train what `arranged` returns, so their comparisons agree.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from fedveil.privacy import Trust
from fedveil.study.prepare import Prepared
from fedveil.study.settings.schema import Study

__all__ = ["ALTERNATIVES", "Arrangement", "arranged", "trusted_in"]

Arrangement = Literal["federated", "pooled", "alone"]
"""Images stay at their hospitals, which train together; all images are pooled; each hospital trains alone."""
ALTERNATIVES: dict[str, tuple[Arrangement, bool]] = {
    "no_privacy": ("federated", False),
    "pooled": ("pooled", True),
    "pooled_no_privacy": ("pooled", False),
    "alone": ("alone", True),
    "alone_no_privacy": ("alone", False),
}
"""What a run is compared with: an arrangement, and whether it has the study's guarantee."""


def trusted_in(arrangement: Arrangement, trust: Trust) -> Trust:
    """The trust level of an arrangement if the federation has ``trust``: whoever holds the images adds the noise.

    >>> trusted_in("pooled", "secure-aggregation"), trusted_in("alone", "server"), trusted_in("alone", "none")
    ('server', 'site', 'none')
    """
    others: dict[Arrangement, Trust] = {"pooled": "server", "alone": "site"}
    return trust if trust == "none" else others.get(arrangement, trust)


def arranged(prepared: Prepared, arrangement: Arrangement, *, private: bool) -> list[Prepared]:
    """The training runs of an arrangement of a study's data, with the study's guarantee or without any."""
    if arrangement == "federated" and private:
        return [prepared]
    trust = trusted_in(arrangement, prepared.study.privacy.trust) if private else "none"
    match arrangement:
        case "pooled":
            parts = [{"pooled": np.concatenate(list(prepared.sites.values()))}]
        case "alone":
            parts = [{name: rows} for name, rows in prepared.sites.items()]
        case _:
            parts = [prepared.sites]
    study = _study(prepared.study, trust, share=len(parts))
    return [replace(prepared, study=study, sites=sites) for sites in parts]


def _study(study: Study, trust: Trust, share: int) -> Study:
    """The study of one training run of an arrangement.

    If sums are divided by a public number of units, a hospital that trains alone uses the mean over hospitals: with
    the total its steps would be too short.
    """
    units = study.training.units
    return study.with_changes(
        {
            "training": {"units": None if units is None else max(1, round(units / share))},
            "privacy": {"trust": trust, "personal_share": 0.0, "personal_calibration_share": 0.0},
            "federation": {"min_sites": None, "min_honest": None},
        }
    )
