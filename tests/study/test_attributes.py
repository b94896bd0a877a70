"""Attributes of patients go from the table through a run into its result and report, and nowhere else."""

import json

import numpy as np
import pytest
from tests.study.conftest import write_images

from fedveil.report import write_report
from fedveil.study import RunDirectory, run


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


def test_a_run_without_attributes_has_no_groups(study, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", study()))
    assert not result["metrics"]["test"].get("subgroups")
