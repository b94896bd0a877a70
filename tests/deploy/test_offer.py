"""What a coordinator offers: the same terms whether it has test images or none."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.deploy.hospital import (
    IMAGES,
    NETWORK,
    OWN_MODELS,
    SITES,
    STUDY,
    record_approval,
    study_text,
    write_images,
)
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.coordinator.runner import load_test_set
from fedveil.deploy.offer import Offer
from fedveil.deploy.records.facts import _model as described
from fedveil.errors import Refused
from fedveil.federation import Reply
from fedveil.federation.queries import OwnModelQuery
from fedveil.study import Study, TrainedModel
from fedveil.study.results.public_start import start_hash


def run_site(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["site", *map(str, words)])
    return found.exit_code, "".join(found.output.split())


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


def test_a_public_start_is_offered_by_its_hash_and_no_path_is_ever_opened(tmp_path, make_hospital):
    """The digest covers the hash; where the model lies stays with the coordinator."""
    template = STUDY.replace('features = "pixels"', f'features = "pixels"\nstart = "{tmp_path / "start"}"')
    study = Study.parse(study_text(template=template.replace(*IMAGES)))
    plain = offer(study_text(template=STUDY.replace(*IMAGES)))
    (tmp_path / "start").mkdir()
    for value in (0.5, 0.25):
        model = TrainedModel.of(study, classes=plain.classes, channels=1, parameters=np.zeros(0))
        replace(model, parameters=np.full(model.model.parameters, value)).save(tmp_path / "start")
        made = Offer.make(study, SITES, load_test_set(study))
        assert made.study.model.start is None
        assert made.study.model.start_sha256 == start_hash(tmp_path / "start")
        assert str(tmp_path) not in made.to_dict()["study"]
        digests = {made.agreement().digest, plain.agreement().digest}
        assert len(digests) == 2
    other = made.study.model.model_copy(update={"start_sha256": "0" * 64})
    assert (
        replace(made, study=made.study.model_copy(update={"model": other})).agreement().digest not in digests
    )
    forged = made.to_dict()
    forged["study"] = forged["study"].replace("start_sha256", 'start = "/etc"\nstart_sha256')
    with pytest.raises(Refused, match="open no path"):
        Offer.from_dict(forged)
    hospital = make_hospital(approve=False, template=template)
    code, said = run_site("studies", hospital.folder)
    assert (code, made.study.model.start_sha256 in said) == (0, True)
    record_approval(hospital.service, hospital.agreement.digest)
    assert isinstance(hospital.round(), Reply)


def test_an_offer_that_names_a_function_is_refused_before_anything_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = offer(study_text(template=NETWORK.replace(*IMAGES)))
    text = plain.study.to_toml().replace('network = "cnn"', 'network = "module:evil.build"')
    with pytest.raises(
        Refused, match=r"names the function module:evil\.build.*run no code that a coordinator names"
    ):
        Offer.from_dict({**plain.to_dict(), "study": text})
    with pytest.raises(Refused, match="names the function"):
        replace(plain, study=Study.parse(text))
    assert "evil" not in sys.modules


@pytest.mark.filterwarnings("ignore")
def test_the_trained_part_of_a_network_is_agreed_on_and_shown():
    """Another part is another study: fewer numbers are released, and the digest differs."""
    plain = offer(study_text(template=NETWORK.replace(*IMAGES)))
    made = {}
    for part in ("last:0", "norms"):
        changes = {"network": "timm:convnext_atto@scratch", "trained": part}
        study = plain.study.with_changes({"model": changes})
        made[part] = replace(plain, study=study)
        assert f"of which {part} and the classifier are trained" in described(study)
    sizes = {part: one.agreement().main.dimension for part, one in made.items()}
    assert sizes["last:0"] == 320 * 2 + 2
    assert sizes["norms"] > sizes["last:0"]
    assert made["last:0"].agreement().digest != made["norms"].agreement().digest
