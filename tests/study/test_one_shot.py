"""A study of one round: all of the budget in one charge, under every trust."""

import numpy as np
import pytest

from fedveil.errors import StudyError
from fedveil.privacy import epsilon, verify_ledger
from fedveil.study import RunDirectory, run

ONE = {"method": "one-shot"}


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server", "none"])
def test_one_round_is_one_charge_of_the_whole_target(study, tmp_path, trust):
    result = run(RunDirectory.create(tmp_path / "out", study(training=ONE, privacy={"trust": trust})))
    assert result["rounds"] == 0
    assert [one["what"] for one in result["releases"]] == ["statistics"]
    assert result["metrics"]["test"]["auroc"] > 0.9
    assert result["metrics"]["test"]["balanced_accuracy"] > 0.8
    assert not any("ended after" in note for note in result["notes"])
    for path in (tmp_path / "out" / "ledgers").glob("*.jsonl"):
        charges = verify_ledger(path).charges
        assert [charge.label.split()[0] for charge in charges] == ["statistics"]
        assert 0.9999 * 20 <= epsilon([charges[0].mechanism], 1e-3) <= 20


@pytest.mark.parametrize("trust", ["site", "secure-aggregation"])
def test_a_threshold_and_an_evaluation_are_paid_from_the_same_target(study, tmp_path, trust):
    shares = {"calibration_share": 0.1, "evaluation_share": 0.2, "trust": trust}
    result = run(RunDirectory.create(tmp_path / "out", study(training=ONE, privacy=shares)))
    assert [one["what"] for one in result["releases"]] == ["statistics", "calibration", "evaluation"]
    assert "released" in result["metrics"]
    assert 0.999 * 20 <= result["guarantee"]["epsilon"] <= 20


def test_three_classes(study, tmp_path):
    with np.load(study().data.source) as file:
        arrays = dict(file)
    patients, generator = arrays["patient"], np.random.default_rng(4)
    images = generator.normal(90, 12, arrays["images"].shape)
    for image, patient in zip(images, patients, strict=True):
        image[4:11, 5 * (patient % 3) : 5 * (patient % 3) + 4] += 60
    changed = {"labels": patients % 3, "images": np.clip(images, 0, 255).astype(np.uint8)}
    classes = np.array(["left", "middle", "right"])
    np.savez(tmp_path / "three.npz", **(arrays | changed | {"classes": classes}))
    settings = study(training=ONE, data={"source": str(tmp_path / "three.npz")})
    result = run(RunDirectory.create(tmp_path / "out", settings))
    assert result["metrics"]["test"]["auroc"] > 0.9
    assert result["metrics"]["test"]["balanced_accuracy"] > 0.7


def test_sessions_that_resume_do_not_ask_again(study, tmp_path):
    """Killed after the answer was kept: the resumed run makes the model from it, without another charge."""
    directory = RunDirectory.create(tmp_path / "out", study(training=ONE))

    class Dies:
        def stage(self, name, total, done=0):
            if name == "training":
                raise KeyboardInterrupt

        def advance(self, count=1, note=""):
            pass

    with pytest.raises(KeyboardInterrupt):
        run(directory, progress=Dies())
    run(RunDirectory.reopen(tmp_path / "out"))
    charges = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl").charges
    assert len(charges) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"network": "cnn", "features": "none"}}, "linear heads"),
        ({"training": ONE | {"sampling_rate": 0.5}}, "sampling_rate"),
        ({"privacy": {"unit": "site"}}, "patients or images"),
    ],
)
def test_what_one_round_cannot_do_is_refused(study, changes, words):
    with pytest.raises(StudyError, match=words):
        study(**({"training": ONE} | changes))
