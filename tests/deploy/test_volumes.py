"""A hospital whose images are volumes."""

from dataclasses import replace

import numpy as np
from tests.deploy.hospital import edit

from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.runtime import Cohorts


def test_a_study_sets_how_a_hospitals_volumes_are_read(make_hospital):
    hospital = make_hospital()
    path = hospital.folder / "images.npz"
    arrays = dict(np.load(path))
    volumes = np.random.default_rng(0).integers(0, 256, (len(arrays["labels"]), 6, 8, 8), dtype=np.uint8)
    np.savez(path, **arrays | {"images": volumes})
    edit(hospital.folder / "site.toml", slices=3)
    cohorts = Cohorts(SiteConfig.load(hospital.folder), hospital.service.identity)
    assert cohorts.dataset().images.planes == 3, "its own setting, where no study asks"
    study = hospital.offer.study.with_changes({"data": {"slices": 4}})
    offer = replace(hospital.offer, study=study)
    task = cohorts.task(offer)
    assert task.dataset.images.planes == 4
    assert task.learner(task.dataset.train).units == len(np.unique(arrays["patient"]))
    assert offer.agreement().main.parameters > hospital.agreement.main.parameters
    assert offer.agreement().digest != hospital.agreement.digest
