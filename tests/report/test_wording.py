from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedveil.privacy import Guarantee, Trust, Unit
from fedveil.report import load
from fedveil.report.wording import guarantee_line, not_protected, notices, protected
from fedveil.study.results.schema import SecureAggregation

MakeRun = Callable[..., Path]


def masked(masks: str) -> SecureAggregation:
    return SecureAggregation(masks=masks, min_honest=4, participants=5)


def words(guarantee: Guarantee, secure: SecureAggregation | None = None) -> str:
    return " ".join(statement.text for statement in protected(guarantee, secure))


def test_the_line_states_the_guarantee_whole() -> None:
    line = guarantee_line(Guarantee(0.99991, 1e-5, "patient", "site"), None)
    assert line == (
        "ε ≤ 1, δ = 10⁻⁵ per patient (adding or removing one), trusting nobody outside the hospital (local DP)"
    )


@pytest.mark.parametrize(
    ("trust", "said", "unsaid"),
    [
        ("site", "Everyone outside the hospital", "masks"),
        ("secure-aggregation", "masks its sum", "has to be trusted"),
        ("server", "Not the coordinating server", "masks"),
    ],
)
def test_against_whom_follows_from_trust(trust: Trust, said: str, unsaid: str) -> None:
    text = words(Guarantee(1.0, 1e-5, "patient", trust))
    assert said in text
    assert unsaid not in text


def test_how_many_hospitals_must_be_honest_is_said() -> None:
    text = words(
        Guarantee(1.0, 1e-5, "patient", "secure-aggregation"),
        masked("real"),
    )
    assert "at least 4 of the 5 hospitals" in text
    assert "simulated" not in text


def test_simulated_masks_are_said_wherever_the_guarantee_is_stated() -> None:
    guarantee, secure = (
        Guarantee(1.0, 1e-5, "patient", "secure-aggregation"),
        masked("simulated"),
    )
    assert "masks simulated" in guarantee_line(guarantee, secure)
    assert "the masks were simulated" in words(guarantee, secure)


@pytest.mark.parametrize(
    ("unit", "said"),
    [("patient", "all of that patient’s images"), ("image", "One image."), ("site", "whole hospital")],
)
def test_who_is_protected_follows_from_the_unit(unit: Unit, said: str) -> None:
    assert said in words(Guarantee(1.0, 1e-5, unit, "site"))


def test_the_factor_and_the_chance_are_those_of_the_guarantee() -> None:
    text = words(Guarantee(3.0, 2e-6, "patient", "site"))
    assert "20.1 times" in text
    assert "2 × 10⁻⁶ (1 in 500,000)" in text


def test_what_is_not_protected_names_staff_tests_groups_and_poisoning(make_run: MakeRun) -> None:
    record = load(make_run(images=624, rounds=2))
    titles = [statement.title for statement in not_protected(record)]
    assert titles[:3] == ["The hospital’s own staff and systems", "The test images", "Groups"]
    assert "A manipulated model" in titles


def test_exact_sizes_are_said_to_be_outside_the_guarantee_where_they_are_shown(make_run: MakeRun) -> None:
    record = load(make_run(images=624, rounds=2))
    title = "The number of training images and patients"
    assert title in [statement.title for statement in not_protected(record)]
    assert record.data is not None
    hidden = record.data.model_copy(update={"images_train": None, "patients_train": None})
    sites = [one.model_copy(update={"patients": None, "images": None}) for one in record.sites]
    for update, said in (({"data": hidden}, True), ({"data": hidden, "sites": tuple(sites)}, False)):
        changed = replace(record, result=record.result.model_copy(update=update))
        assert (title in [statement.title for statement in not_protected(changed)]) is said
    assert any("624 test images" in statement.text for statement in not_protected(record))


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (lambda result: None, "Masks are simulated"),
        (lambda result: result["data"].update(patients_known=False), "Patients are not known"),
        (lambda result: result["data"].update(synthetic=True), "Synthetic images"),
        (lambda result: result["guarantee"].update(epsilon=0.01), "The stated guarantee does not hold"),
    ],
)
def test_what_must_not_be_overlooked_is_a_notice(
    make_run: MakeRun, change: Callable[[dict[str, Any]], None], title: str
) -> None:
    assert title in [notice.title for notice in notices(load(make_run(images=20, rounds=2, change=change)))]


def test_real_masks_and_known_patients_need_no_notice(make_run: MakeRun) -> None:
    run = make_run(
        images=20, rounds=2, change=lambda result: result["secure_aggregation"].update(masks="real")
    )
    assert notices(load(run)) == ()


def test_images_as_units_need_no_notice_on_patients(make_run: MakeRun) -> None:
    def change(result: dict[str, Any]) -> None:
        result["data"].update(patients_known=False)

    run = make_run(images=20, rounds=2, unit="image", trust="site", change=change)
    assert notices(load(run)) == ()
