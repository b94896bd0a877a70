"""What a hospital says beside its sums is the same with and without one unit, whatever is odd about that unit."""

from dataclasses import replace

import numpy as np
import pytest
from tests.neighbours.cohorts import SIZE, Image, cohort, manifest, without
from tests.neighbours.harness import PIXELS, make_study, start, without_noise

TWO, FOUR = ("ill", "normal"), ("a", "b", "c", "d")
CNN = 'network = "cnn"'


def damaged(write):
    """Writes a cohort whose patient ``rare`` has a file that is whole in its header only."""

    def spoil(folder, images):
        source = write(folder, images)
        for image in images:
            if image.patient == "rare":
                path = folder / f"{image.name}.png"
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])
        return source

    return spoil


def test_a_file_that_cannot_be_decoded_leaves_all_others_in_the_sum(open_both, caplog):
    """A network reads its images in every round; one damaged file made the whole hospital's sum zero."""
    study = make_study(TWO, model=CNN, training="sampling_rate = 1.0\nmethod = 'gradient'")
    images = cohort(TWO, plain=6)
    neighbour = without(images, "patient", "rare")
    whole, less, agreement = open_both(study, damaged(manifest("patient", "split")), images, neighbour)
    model = whole.task.model
    start = model.join(None, model.initial())
    for release in map(without_noise, agreement.releases):
        judged = release.parameters == model.classes + model.parameters
        parameters = np.concatenate([np.ones(2), start]) if judged else start[: release.parameters]
        (total, lost), (rest, lost_too) = whole.ask(release, parameters), less.ask(release, parameters)
        assert rest.any()
        assert (lost, lost_too) == (False, False)
        assert np.linalg.norm(total - rest) <= release.mechanism.clip_norm * (1 + 1e-6), release.name
    assert "counts as black" in caplog.text


@pytest.mark.parametrize("model", [PIXELS, CNN])
@pytest.mark.parametrize("gone", ["rare", "many", "black"])
def test_what_is_said_beside_the_sums_is_the_same(open_hospital, model, gone):
    """Class ``d`` is that of one patient only, and so are its two positive ones of four."""
    study = make_study(FOUR, model=model)
    images = cohort(FOUR, plain=4)
    answers = []
    for one in (images, without(images, "patient", gone)):
        hospital = open_hospital(study, manifest("patient", "split"), one)
        said = [hospital.status()]
        for number, release in enumerate(hospital.agreement.releases, 1):
            said.append(hospital.ask(release.name, number, start(study, release)))
        said.append(hospital.ask("training", 99, np.full(3, 1e300)))
        answers.append(said)
    assert answers[0][0] == "ready"
    assert answers[0][-1][0] == "Declined"
    assert answers[0] == answers[1]


@pytest.mark.parametrize("gone", ["ill", "normal"])
def test_a_class_that_one_patient_alone_has_is_not_needed(open_hospital, gone):
    """Of the classes that count as positive, and of all others, a hospital may have none."""
    study = make_study(("normal or fracture", "positive")).with_changes(
        {"data": {"positive": ("ill", "mass")}}
    )
    images = [
        Image(f"i{number}", f"p{number}", label, np.full((SIZE, SIZE), 9 * number, np.uint8))
        for number, label in enumerate(["normal"] * 6 + ["ill"])
    ]
    if gone == "normal":
        images = [replace(image, label="ill") for image in images[:6]] + [replace(images[6], label="normal")]
    statuses = [open_hospital(study, manifest("patient"), one).status() for one in (images, images[:6])]
    assert statuses == ["ready", "ready"]


def test_a_hospital_left_with_nobody_to_test_says_so_to_nobody(open_hospital):
    study = make_study(TWO)
    images = cohort(TWO, plain=3)
    tested = {image.patient for image in images if image.split == "test"}
    assert tested == {"tested"}
    answers = []
    for one in (images, without(images, "patient", "tested")):
        hospital = open_hospital(study, manifest("patient", "split"), one)
        parameters = start(study, hospital.agreement.release("evaluation"))
        answers.append([hospital.status(), hospital.ask("evaluation", 1, parameters)])
    assert answers[0] == answers[1] == ["ready", ("Reply", "evaluation", 1, 1, (20,), "float64")]
