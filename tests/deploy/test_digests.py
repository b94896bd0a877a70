"""48 bits of a digest name a study to people only: two studies that agree in them are made in minutes."""

import pytest
from tests.deploy.hospital import OWN_MODELS
from tests.deploy.test_models import kept, model_for, own_charges, send

from fedveil.deploy.site.review import review
from fedveil.federation import Declined, Reply
from fedveil.privacy import epsilon


def charge(hospital, study, release="training", attempt=1, steps=None):
    """A line in the hospital's ledger as a study that is called so would have left it."""
    mechanism = hospital.agreement.release(release).mechanism
    hospital.service.ledger.reserve(
        mechanism if steps is None else mechanism.with_steps(steps),
        study=study,
        trust="site",
        round=1,
        label=f"{release} attempt {attempt}",
    )


def look_alike(hospital) -> str:
    """Another study of the same name whose digest has the same first 12 digits."""
    digest = hospital.agreement.digest
    return f"{hospital.agreement.name} {digest[:12]}{'0' * 52}"


def old(hospital) -> str:
    """What earlier versions wrote."""
    return f"{hospital.agreement.name} {hospital.agreement.digest[:12]}"


def all_of(hospital):
    return [release.mechanism for release in hospital.agreement.releases]


def test_a_ledger_line_holds_the_whole_digest(hospital):
    assert isinstance(hospital.round(), Reply)
    assert hospital.ledger.studies == (f"toy {hospital.agreement.digest}",)


@pytest.mark.parametrize("other", [look_alike, old])
def test_the_review_adds_what_a_study_of_the_same_12_digits_cost(hospital, other):
    charge(hospital, other(hospital))
    listed = hospital.service.studies.read(hospital.agreement.digest)
    both = [*all_of(hospital), hospital.agreement.release("training").mechanism]
    found = review(hospital.service.config, listed)
    assert found.after == pytest.approx(epsilon(both, 1e-3, adaptive=True))
    assert found.after > epsilon(all_of(hospital), 1e-3, adaptive=True) * 1.2


def test_a_look_alike_is_no_reason_to_skip_the_check_of_the_budget(make_hospital):
    """A study that has begun is checked charge by charge; one that only looks so has to fit as a whole."""
    hospital = make_hospital(epsilon=15.0)
    charge(hospital, look_alike(hospital))
    assert isinstance(hospital.round(), Declined)
    assert len(hospital.ledger.charges) == 1


def test_a_line_of_an_earlier_version_counts_against_the_studys_own_limit(make_hospital):
    """Whether it is this study's nobody can tell, so it limits it, and its attempts are not served again."""
    hospital = make_hospital(rounds=2)
    charge(hospital, old(hospital), attempt=5)
    assert isinstance(hospital.round(1, 5), Declined)
    answers = [hospital.round(1, 6), hospital.round(2, 7), hospital.round(1, 8)]
    assert [type(answer) for answer in answers].count(Reply) < 3
    own = [one.mechanism for one in hospital.ledger.charges]
    assert epsilon(own, 1e-3, adaptive=True) <= hospital.agreement.target.epsilon


def test_an_own_model_that_may_have_been_paid_for_is_not_made_again(make_hospital):
    hospital = make_hospital(template=OWN_MODELS)
    for release in ("personal", "personal-calibration"):
        charge(hospital, old(hospital), release)
    send(hospital, model_for(hospital))
    assert kept(hospital).own() is None
    assert own_charges(hospital) == 1


def test_models_and_answers_lie_under_the_whole_digest(hospital):
    hospital.round()
    send(hospital, model_for(hospital))
    digest = hospital.agreement.digest
    assert kept(hospital).folder == hospital.folder / "models" / digest
    assert (hospital.folder / "models" / digest / "model.json").exists()
    assert [path.name for path in (hospital.folder / "spool").glob("*/")] == [digest]
