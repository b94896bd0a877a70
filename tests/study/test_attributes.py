"""Attributes of patients go from the table through a run into its result and report, and nowhere else."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.study.conftest import write_images

from fedveil.errors import StudyError
from fedveil.privacy import epsilon, verify_ledger
from fedveil.report import write_report
from fedveil.study import RunDirectory, Study, run


@pytest.fixture
def with_sex(study, tmp_path):
    """The study of other tests with the sex of each patient, which half of them do not state."""
    settings = study(data={"columns": {"attributes": {"sex": "sex"}}})
    path = write_images(tmp_path / "with-sex.npz")
    with np.load(path) as file:
        arrays = dict(file)
    sex = np.array(["F", "M", "", "x"])[arrays["patient"] // 4 % 4]
    np.savez(path, **arrays, sex=sex)
    return settings.with_changes({"data": {"source": str(path)}})


def test_a_run_says_how_well_each_group_is_served(with_sex, tmp_path):
    directory = RunDirectory.create(tmp_path / "out", with_sex)
    result = run(directory)
    groups = {one["group"]: one for one in result["metrics"]["test"]["subgroups"]}
    assert list(groups) == ["female", "male", "other or unknown"]
    assert sum(one["n"] for one in groups.values()) == result["metrics"]["test"]["n"]
    for one in groups.values():
        low, high = one["auroc_gap_interval"]
        assert low <= one["auroc_gap"] <= high
    page = write_report(directory.path).read_text()
    assert "By subgroup" in page
    assert "AUROC minus all others" in page
    stored = json.loads((directory.path / "result.json").read_text())
    assert stored["metrics"]["test"]["subgroups"][0]["attribute"] == "sex"
    assert "sex" not in (directory.path / "predictions.csv").read_text(), "values stay with the images"


def held_out_by_patient(run_directory, source):
    """AUROC of each sex by the scores' bins, each patient counting as one, from the predictions and the file."""
    with np.load(source) as file:
        sexes = dict(zip(map(str, file["patient"]), file["sex"], strict=True))
    with (run_directory / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    patients = [row["patient"] for row in rows]
    groups = {"F": "female", "M": "male"}
    found = {}
    for group in ("female", "male", "other or unknown"):
        own = [row for row in rows if groups.get(sexes[row["patient"]], "other or unknown") == group]
        weights = [1 / patients.count(row["patient"]) for row in own]
        scores = [min(int(10 * float(row["score:right"])), 9) for row in own]
        found[group] = roc_auc_score([row["label"] == "right" for row in own], scores, sample_weight=weights)
    return found


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_groups_of_held_out_patients_are_released_under_the_budget(with_sex, tmp_path, trust):
    settings = with_sex.with_changes(
        {"data": {"subgroup": "sex"}, "privacy": {"subgroup_share": 0.3, "epsilon": 60.0, "trust": trust}}
    )
    directory = RunDirectory.create(tmp_path / "out", settings)
    result = run(directory)
    assert [one["what"] for one in result["releases"]][-1] == "subgroups"
    released = result["metrics"]["released"]
    groups = {one["group"]: one for one in released["subgroups"]}
    assert list(groups) == ["female", "male", "other or unknown"]
    assert sum(one["units"] for one in groups.values()) == pytest.approx(released["units"])
    if trust == "none":
        exact = held_out_by_patient(directory.path, settings.data.source)
        for group, one in groups.items():
            assert one["auroc"] == pytest.approx(exact[group], abs=1e-6)
    for one in groups.values():
        if one["auroc_gap"] is not None and not np.isnan(one["auroc_gap"]):
            assert one["auroc_gap_interval"][0] <= one["auroc_gap"] <= one["auroc_gap_interval"][1]
    for path in (directory.path / "ledgers").glob("*.jsonl"):
        charges = verify_ledger(path).charges
        assert charges[-1].label.split()[0] == "subgroups"
        assert epsilon([charge.mechanism for charge in charges], 1e-3) <= 60
    page = write_report(directory.path).read_text()
    assert "By subgroup of held-out patients" in page


@pytest.mark.parametrize(
    ("data", "privacy", "said"),
    [
        ({"subgroup": "sex"}, {}, "set both, or neither"),
        ({}, {"subgroup_share": 0.1}, "set both, or neither"),
        ({"subgroup": "sex", "subgroup_values": ["F"]}, {"subgroup_share": 0.1}, "are fixed"),
        ({"subgroup": "scanner"}, {"subgroup_share": 0.1}, "list them"),
        ({"subgroup_values": ["A"]}, {}, "set it, or remove"),
        ({"subgroup": "scanner", "subgroup_values": ["A", "A "]}, {"subgroup_share": 0.1}, "different names"),
        ({"subgroup": "scanner", "subgroup_values": ["A ", "B"]}, {"subgroup_share": 0.1}, "outer spaces"),
        (
            {"subgroup": "scanner", "subgroup_values": ["other or unknown"]},
            {"subgroup_share": 0.1},
            "everybody",
        ),
    ],
)
def test_groups_that_are_not_declared_beforehand_are_refused(data, privacy, said):
    with pytest.raises(StudyError, match=said):
        Study().with_changes({"data": data, "privacy": privacy})


def test_a_run_without_attributes_has_no_groups(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", study()))
    assert not result["metrics"]["test"].get("subgroups")
