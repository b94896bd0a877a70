"""What a coordinator cannot offer to hospitals."""

import numpy as np
import pytest

from fedveil.data import ArrayImages, Dataset
from fedveil.deploy.offer import Offer
from fedveil.errors import Refused
from fedveil.study import Study


def test_hospitals_are_not_charged_for_own_models_that_nobody_makes():
    nobody = np.empty(0, dtype=np.int64)
    dataset = Dataset(
        name="empty",
        images=ArrayImages(np.empty((0, 64, 64, 1), dtype=np.float32), 64),
        labels=nobody,
        patients=nobody,
        patient_names=(),
        image_names=(),
        classes=("left", "right"),
        sites=None,
        site_names=(),
        split=np.empty(0, dtype=np.int8),
        synthetic=False,
        patients_known=True,
        description="",
    )
    for share, refused in ((0.0, False), (0.3, True)):
        study = Study().with_changes(
            {"training": {"units": 300}, "privacy": {"trust": "site", "personal_share": share}}
        )
        offer = Offer.make(study, ("north", "south"), dataset)
        if refused:
            with pytest.raises(Refused, match="personal_share"):
                offer.terms()
        else:
            assert offer.terms().sites == ("north", "south")
