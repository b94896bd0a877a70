"""One unit more or less moves no release by more than its noise is for: every reader, unit, model and release."""

import pytest
from tests.neighbours.checks import check_alone, check_neighbours
from tests.neighbours.cohorts import (
    SPECIAL,
    cohort,
    dicom_folders,
    dicom_manifest,
    folders,
    folders_of_sites,
    manifest,
    medmnist,
    npz,
    with_other_hospital,
    without,
)
from tests.neighbours.harness import PIXELS, SHARES, make_offer, make_study

TWO, FOUR = ("ill", "normal"), ("a", "b", "c", "d")
READERS = {
    "manifest": (manifest("patient"), "patient", {}),
    "manifest-splits": (manifest("patient", "site", "split"), "patient", {"site": '"north"'}),
    "manifest-bare": (manifest(), "image", {}),
    "folders": (folders, "image", {}),
    "folders-of-sites": (folders_of_sites, "image", {"site": '"north"'}),
    "npz": (npz, "patient", {}),
    "npz-images": (npz, "image", {}),
    "medmnist": (medmnist, "image", {}),
    "dicom": (dicom_folders, "patient", {}),
    "dicom-manifest": (dicom_manifest, "patient", {}),
}


def masked(study):
    """The same study under secure aggregation."""
    privacy = {"trust": "secure-aggregation"}
    return make_offer(study.with_changes({"privacy": privacy})).agreement().releases


@pytest.mark.parametrize("reader", READERS)
def test_every_reader(open_both, reader):
    write, unit, settings = READERS[reader]
    study = make_study(TWO, unit)
    images = cohort(TWO)
    images = with_other_hospital(images) if "site" in settings else images
    for gone in SPECIAL:
        whole, less, agreement = open_both(study, write, images, without(images, unit, gone), **settings)
        check_neighbours(whole, less, agreement.releases, masked(study))


LINEAR = {
    "four classes": {"classes": FOUR},
    "scattering, whitened": {
        "classes": FOUR,
        "model": 'features = "scattering"',
    },
    "images": {"classes": FOUR, "unit": "image"},
    "one shot": {
        "classes": FOUR,
        "training": 'method = "one-shot"',
        "privacy": "evaluation_share = 0.1\ncalibration_share = 0.1",
    },
    "averaging": {"training": 'method = "averaging"\nunits = 20', "privacy": SHARES},
    "own models": {
        "training": "units = 20",
        "privacy": SHARES + "\npersonal_share = 0.2\npersonal_calibration_share = 0.1",
    },
    "one shot of images": {"unit": "image", "training": 'method = "one-shot"', "privacy": SHARES},
    "sampled": {"training": "sampling_rate = 0.5"},
}


@pytest.mark.parametrize("kind", LINEAR)
def test_every_release_of_linear_heads(open_both, kind):
    study = make_study(**{"classes": TWO, **LINEAR[kind]})
    unit = study.privacy.unit
    images = cohort(study.data.classes)
    for gone in ("many", "mixed", "twin-1", "rare", "black", "tested"):
        whole, less, agreement = open_both(
            study, manifest("patient", "split"), images, without(images, unit, gone)
        )
        check_neighbours(whole, less, agreement.releases, masked(study))


NETWORKS = {
    "flat": ('network = "cnn"', 'clipping = "flat"\nviews = 2'),
    "automatic": ('network = "cnn"', 'clipping = "automatic"'),
    "per layer": ('network = "cnn"', 'clipping = "per-layer"'),
    "sampled": ('network = "cnn"', "sampling_rate = 0.5"),
    "resnet18": ('network = "resnet18"', ""),
    "tuned": ('network = "efficientnet-lite0"', ""),
    "adapters": ('network = "timm:mobilevit_xxs@scratch"\ntrained = "lora:2"', ""),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_release_of_networks(open_both, kind):
    model, training = NETWORKS[kind]
    study = make_study(TWO if kind == "flat" else FOUR, model=model, training=training)
    deep = kind == "resnet18"
    images = cohort(study.data.classes, plain=0 if deep else 4)
    for gone in ("many", "tested") if kind in ("flat", "tuned") else ("many",):
        whole, less, agreement = open_both(
            study, manifest("patient", "split"), images, without(images, "patient", gone)
        )
        releases = tuple(one for one in agreement.releases if not deep or one is agreement.main)
        check_neighbours(whole, less, releases, masked(study), most=1 if deep else None)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (PIXELS, ""),
        (PIXELS, 'method = "averaging"\nsampling_rate = 1.0'),
        ('network = "cnn"', ""),
        (
            'network = "cnn"',
            'method = "averaging"\nsampling_rate = 1.0\nlocal_steps = 2\nlocal_learning_rate = 2.0',
        ),
    ],
)
def test_a_whole_hospital_is_one_unit(open_both, model, training):
    """Without it there is nothing to sum: all that it sends has to be within the bound of one."""
    study = make_study(TWO, "site", model=model, training=training)
    images = cohort(TWO, plain=6)
    whole, _, agreement = open_both(study, manifest("patient", "split"), images, images)
    assert whole.learner.units == 1
    check_alone(whole, agreement.releases, masked(study))


def test_grades(open_both):
    shares = f"{SHARES}\ncalibration_share = 0.1"
    study, images = make_study(FOUR, "patient", data='task = "grades"', privacy=shares), cohort(FOUR)
    for gone in ("many", "mixed", "twin-1", "rare", "black", "tested"):
        whole, less, agreement = open_both(
            study, manifest("patient", "split"), images, without(images, "patient", gone)
        )
        check_neighbours(whole, less, agreement.releases, masked(study))


def with_sex(folder, images):
    """A manifest with a sex for each image, which may differ between the images of a patient."""
    source = manifest("patient", "split")(folder, images)
    lines = (folder / source).read_text().splitlines()
    sexes = ["sex", *("FM?"[sum(image.name.encode()) % 3] for image in images)]
    (folder / source).write_text("\n".join(f"{line},{sex}" for line, sex in zip(lines, sexes, strict=True)))
    return source


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_subgroups_of_held_out_patients(open_both, unit):
    shares = f"{SHARES}\nsubgroup_share = 0.1"
    study = make_study(FOUR, unit, data='subgroup = "sex"', privacy=shares)
    images = cohort(FOUR)
    for gone in ("many", "tested"):
        whole, less, agreement = open_both(
            study,
            with_sex,
            images,
            without(images, unit, gone),
            columns='{ attributes = { sex = "sex" } }',
        )
        assert len(set(whole.held_out._strata)) > 1
        check_neighbours(whole, less, agreement.releases, masked(study))
