"""One cohort, one ledger: studies that protect other units are priced in it, or refused; never sent to a second one."""

import pytest
from tests.deploy.hospital import STUDY
from tests.deploy.test_cohorts import status

from fedveil.deploy.site.review import review
from fedveil.errors import Refused
from fedveil.federation import Declined, Reply
from fedveil.privacy import epsilon

PER_SITE = STUDY.replace("[privacy]", '[privacy]\nunit = "site"')
PER_IMAGE = STUDY.replace("[privacy]", '[privacy]\nunit = "image"')


@pytest.mark.parametrize("trust", ["site", "secure-aggregation"])
def test_a_study_of_a_coarser_unit_is_priced_in_the_ledger_of_the_finer_one(make_hospital, trust):
    """To remove one patient changes what a site contributes, by up to twice the bound: half the noise multiplier."""
    hospital = make_hospital(template=PER_SITE, epsilon=4.0, trust=trust, min_sites=3)
    listed = hospital.service.studies.read(hospital.agreement.digest)
    found = review(hospital.service.config, listed)
    mechanisms = [release.mechanism for release in hospital.agreement.releases]
    as_patients = [one.for_unit("patient") for one in mechanisms]
    assert all(
        one.noise_multiplier == whole.noise_multiplier / 2
        for one, whole in zip(as_patients, mechanisms, strict=True)
    )
    assert found.objection is None
    assert found.after == pytest.approx(epsilon(as_patients, 1e-3, adaptive=True))
    assert found.after > 1.5 * epsilon(mechanisms, 1e-3, adaptive=True)
    assert status(hospital) == "ready"


def test_charges_of_both_units_add_up_in_one_ledger(make_hospital):
    hospital = make_hospital(template=PER_SITE, epsilon=4.0)
    assert isinstance(hospital.round(1, 1), Reply)
    mechanism = hospital.agreement.release("training").mechanism.with_steps(1)
    hospital.service.ledger.reserve(
        hospital.agreement.release("training").mechanism.for_unit("patient"), study="x", trust="site"
    )
    parts = [
        mechanism.for_unit("patient"),
        hospital.agreement.release("training").mechanism.for_unit("patient"),
    ]
    assert hospital.ledger.spent() == pytest.approx(epsilon(parts, 1e-3, adaptive=True))
    listed = hospital.service.studies.read(hospital.agreement.digest)
    assert review(hospital.service.config, listed).after > hospital.ledger.spent()


def test_a_coarser_study_that_does_not_fit_is_refused_by_the_finer_price(make_hospital):
    """Epsilon 15 for each site is more than 20 for each patient."""
    hospital = make_hospital(template=PER_SITE, epsilon=15.0)
    assert status(hospital) == "refused"
    assert isinstance(hospital.round(), Declined)
    assert not hospital.ledger.charges


def test_a_study_of_a_finer_unit_is_refused_with_advice_that_keeps_one_ledger(make_hospital):
    hospital = make_hospital(template=PER_IMAGE)
    with pytest.raises(Refused) as refused:
        hospital.service.config.check(hospital.agreement)
    assert 'set privacy.unit = "patient"' in str(refused.value)
    assert "would not count what the first one spent" in str(refused.value)
    listed = hospital.service.studies.read(hospital.agreement.digest)
    assert review(hospital.service.config, listed).after == float("inf")
    assert status(hospital) == "refused"


def test_a_sampled_study_of_a_coarser_unit_is_refused(make_hospital):
    template = PER_SITE.replace("[training]", "[training]\nsampling_rate = 0.5")
    hospital = make_hospital(template=template, epsilon=1.0)
    with pytest.raises(Refused, match="price per patient of sampling by site is not known"):
        hospital.service.config.check(hospital.agreement)
