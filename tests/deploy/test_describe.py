"""A hospital describes its cohort: from its folder to noisy counts, charged to its ledger."""

import json

import numpy as np
import pytest
from tests.deploy.hospital import SITES, set_up
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.identity import Identity
from fedveil.privacy import verify_ledger


@pytest.fixture
def folder(tmp_path):
    return set_up(tmp_path, Identity.create(tmp_path / "coordinator.key"), SITES[0])


def fedveil(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output + done.stderr


def describe(folder, *words: object, classes: str = "normal, ill") -> tuple[int, str]:
    return fedveil("site", "describe", folder, "--classes", classes, *words)


def test_counts_are_released_with_noise_and_charged(folder):
    errors = []
    for number in range(1, 7):
        code, said = describe(folder, "--epsilon", 2, "--yes", "--json")
        assert code == 0, said
        found = json.loads(said)
        errors += [value - 30 for value in found["counts"]["class"].values()]
        state = verify_ledger(folder / "ledger.jsonl")
        assert len(state.charges) == number
    assert state.charges[-1].label == "cohort-counts"
    assert found["guarantee"]["epsilon"] == 2.0
    assert found == json.loads((folder / "description.json").read_text())
    std = found["noise_std"]
    assert (
        0.3 * std < np.sqrt(np.mean(np.square(errors))) < 2.2 * std
    )  # 12 numbers: wrong once in 100,000 runs


def test_a_person_reads_what_it_costs_and_says_no(folder):
    done = CliRunner().invoke(app, ["site", "describe", str(folder), "--classes", "normal,ill"], input="n\n")
    assert done.exit_code == 1
    assert "this costs epsilon 0.1" in done.output
    assert not verify_ledger(folder / "ledger.jsonl").charges


def test_classes_are_named_and_not_taken_from_whoever_is_there(folder):
    """A class that nobody here has is counted; a label that is no class is an error, and charges nothing."""
    code, said = describe(folder, "--yes", classes="normal,ill,rare")
    assert code == 0
    assert "rare" in said
    code, said = describe(folder, "--yes", classes="normal,healthy")
    assert code == 2
    assert "the class ill is unknown" in said
    assert "Traceback" not in said
    assert len(verify_ledger(folder / "ledger.jsonl").charges) == 1


@pytest.mark.parametrize(
    ("epsilon", "words"), [("0", "epsilon is 0"), ("50", "left"), ("-1", "epsilon is -1"), ("nan", "epsilon")]
)
def test_what_cannot_be_paid_is_refused(folder, epsilon, words):
    code, said = describe(folder, "--yes", "--epsilon", epsilon)
    assert code == 2
    assert words in said
    assert not verify_ledger(folder / "ledger.jsonl").charges


def test_attributes_that_the_settings_name_are_counted_too(folder):
    with np.load(folder / "images.npz") as file:
        arrays = dict(file)
    count = len(arrays["labels"])
    np.savez(
        folder / "images.npz",
        **arrays,
        born=np.full(count, 70),
        gender=np.array(["F", "M"])[np.arange(count) % 2],
    )
    settings = (folder / "site.toml").read_text()
    named = '\ncolumns = { attributes = { age = "born", sex = "gender" } }'
    (folder / "site.toml").write_text(settings.replace("\n[budget]", f"{named}\n[budget]"))
    code, said = describe(folder, "--epsilon", 19, "--yes", "--json")
    assert code == 0, said
    found, near = json.loads(said)["counts"], 7 * json.loads(said)["noise_std"]  # further once in 10^11 runs
    assert near < count / 2
    assert found["age"]["65-79"] == pytest.approx(count, abs=near)
    assert found["age"]["18-39"] == pytest.approx(0, abs=near)
    assert found["sex"]["female"] == pytest.approx(count / 2, abs=near)
