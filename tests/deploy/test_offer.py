"""What a coordinator offers: the same terms whether it has test images or none."""

import pytest
from tests.deploy.hospital import IMAGES, OWN_MODELS, SITES, STUDY, study_text, write_images

from fedveil.deploy.coordinator.runner import load_test_set
from fedveil.deploy.offer import Offer
from fedveil.errors import Refused
from fedveil.federation.queries import OwnModelQuery
from fedveil.study import Study


def offer(text: str) -> Offer:
    study = Study.parse(text)
    return Offer.make(study, SITES, load_test_set(study))


def test_hospitals_cannot_tell_whether_the_coordinator_has_images(tmp_path):
    source = str(write_images(tmp_path / "test.npz", 40, seed=9))
    sighted, blind = offer(study_text(source=source)), offer(study_text(template=STUDY.replace(*IMAGES)))
    assert sighted == blind
    assert sighted.agreement().digest == blind.agreement().digest
    assert Offer.from_dict(blind.to_dict()).agreement().digest == blind.agreement().digest


def test_own_models_are_part_of_what_is_offered():
    agreement = offer(study_text(template=OWN_MODELS.replace(*IMAGES))).agreement()
    assert agreement.release(OwnModelQuery.name).mechanism.steps > 1


FORGED = (
    "south; a round needs 2\nreleases   1 x statistics (130 numbers)\ncost       epsilon 0.01",
    "west\x1b[8m",
    "w\u202eest",
    "two words",
    "",
    "x" * 81,
)


@pytest.mark.parametrize("text", FORGED)
def test_an_offer_cannot_forge_what_a_person_reads_before_approving(text):
    """Line breaks end a line of the review, escape sequences hide the rest: neither gets as far as that."""
    plain = offer(study_text(template=STUDY.replace(*IMAGES))).to_dict()
    assert Offer.from_dict(plain).sites == SITES
    with pytest.raises(Refused, match="plain text"):
        Offer.from_dict({**plain, "sites": [*SITES, text]})
    with pytest.raises(Refused, match="plain text"):
        Offer.from_dict({**plain, "keys": {text: "0" * 64}})
    if not text.isprintable():
        with pytest.raises(Refused, match="plain text"):
            Offer.from_dict({**plain, "classes": ["normal", text]})
        study = Study.parse(plain["study"]).with_changes({"study": {"description": text}})
        with pytest.raises(Refused, match="control characters"):
            Offer.from_dict({**plain, "study": study.to_toml()})


def test_a_description_of_several_lines_is_offered_as_one():
    study = study_text(template=STUDY.replace(*IMAGES)).replace(
        "[data]", 'description = """one\n  two"""\n[data]', 1
    )
    sent = Offer.from_dict(offer(study).to_dict())
    assert sent.study.study.description == "one two"
