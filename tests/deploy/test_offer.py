"""What a coordinator offers: the same terms whether it has test images or none."""

from tests.deploy.hospital import IMAGES, OWN_MODELS, SITES, STUDY, study_text, write_images

from fedveil.deploy.coordinate import load_test_set
from fedveil.deploy.offer import Offer
from fedveil.federation import PERSONAL
from fedveil.study import Study


def offer(text: str) -> Offer:
    study = Study.parse(text)
    return Offer.make(study, SITES, load_test_set(study))


def test_hospitals_cannot_tell_whether_the_coordinator_has_images(tmp_path):
    source = str(write_images(tmp_path / "test.npz", 40, seed=9))
    sighted, blind = offer(study_text(source=source)), offer(study_text(template=STUDY.replace(*IMAGES)))
    assert sighted == blind
    assert sighted.terms().digest == blind.terms().digest
    assert Offer.from_dict(blind.to_dict()).terms().digest == blind.terms().digest


def test_own_models_are_part_of_what_is_offered():
    terms = offer(study_text(template=OWN_MODELS.replace(*IMAGES))).terms()
    assert terms.release(PERSONAL).mechanism.steps > 1
