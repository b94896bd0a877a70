"""What a hospital says of its cohort on its own: counts as a loop counts them, noise and a charge before they leave."""

from dataclasses import replace

import numpy as np
import pytest
from tests.federation.queries.hospital import CLASSES, FINDINGS, records

from fedveil.data.annotations.columns import Column
from fedveil.errors import BudgetExceeded, InvalidValue
from fedveil.federation import HospitalUnits, NoisySum
from fedveil.federation.alone import release_alone
from fedveil.federation.queries import CohortCountsQuery
from fedveil.privacy import Budget, Ledger, epsilon

AGES = ("12", "18", "40.5", "64", "79", "80", "", "unknown", "-3", "nan", "1e99")
BANDS = (0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 5)


def with_attributes(cohort, **columns):
    return replace(cohort, attributes={name: Column.of(texts) for name, texts in columns.items()})


def counted(query, cohort):
    total = query.contribution(HospitalUnits(records=cohort), np.empty(0), 1.0, None)
    return query.counts(NoisySum(total, 0.0))


def test_units_are_counted_as_a_loop_counts_them():
    cohort = records()
    expected = dict.fromkeys(CLASSES, 0.0)
    for patient in range(len(cohort)):
        labels = cohort.labels[cohort.rows(patient)]
        for label in labels:
            expected[CLASSES[label]] += 1 / len(labels)
    query = CohortCountsQuery.over(cohort, "patient")
    assert counted(query, cohort) == {"class": pytest.approx(expected)}
    assert sum(counted(query, cohort)["class"].values()) == pytest.approx(len(cohort))
    by_image = counted(CohortCountsQuery.over(cohort, "image"), cohort)["class"]
    assert list(by_image.values()) == pytest.approx(np.bincount(cohort.labels, minlength=3).tolist())


def test_ages_fall_into_public_bands_and_whatever_is_no_age_into_one_of_its_own():
    cohort = records()
    ages = tuple(AGES[k % len(AGES)] for k in range(len(cohort.labels)))
    sexes = tuple(("F", "male", "divers")[k % 3] for k in range(len(cohort.labels)))
    query = CohortCountsQuery.over(with_attributes(cohort, age=ages, sex=sexes, scanner=ages), "image")
    assert query.attributes == ("age", "sex")
    found = counted(query, with_attributes(cohort, age=ages, sex=sexes))
    bands = np.bincount([BANDS[k % len(AGES)] for k in range(len(ages))], minlength=6)
    assert list(found["age"].values()) == pytest.approx(bands.tolist())
    assert list(found["sex"].values()) == pytest.approx(np.bincount(np.arange(len(ages)) % 3).tolist())
    assert list(found["age"]) == ["0-17", "18-39", "40-64", "65-79", "80+", "other or unknown"]


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_with_attributes_too_nobody_adds_more_than_one(unit):
    """However often a patient comes, and whatever stands in the columns."""
    cohort, generator = records(), np.random.default_rng(3)
    columns = {
        "age": tuple(AGES[k] for k in generator.integers(0, len(AGES), len(cohort.labels))),
        "sex": tuple(("f", "m", "?")[k] for k in generator.integers(0, 3, len(cohort.labels))),
    }
    cohort = with_attributes(cohort, **columns)
    query, here = CohortCountsQuery.over(cohort, unit), HospitalUnits(records=cohort)
    count = len(cohort) if unit == "patient" else len(cohort.labels)
    alone = [query.contribution(here, np.empty(0), 1.0, np.array([k])) for k in range(count)]
    norms = [np.linalg.norm(each) for each in alone]
    assert max(norms) == pytest.approx(1.0)
    assert max(norms) <= 1 + 1e-12
    np.testing.assert_allclose(np.sum(alone, axis=0), query.contribution(here, np.empty(0), 1.0, None))


def test_counts_are_charged_first_and_have_all_of_the_noise(tmp_path):
    cohort = records()
    query, found = CohortCountsQuery.over(cohort, "patient"), []
    exact = np.array(list(counted(query, cohort)["class"].values()))
    with Ledger(tmp_path / "ledger.jsonl", Budget(2.0, 1e-3)) as ledger:
        for asked in range(1, 9):
            released = release_alone(
                query, HospitalUnits(records=cohort), ledger, site="here", length=query.size, epsilon=0.5
            )
            found += list(np.array(list(query.counts(released)["class"].values())) - exact)
            assert len(ledger.state.charges) == asked
        charge = ledger.state.charges[0]
        assert (charge.label, charge.trust) == ("cohort-counts", "site")
        assert charge.alone == charge.mechanism
        assert 0.4999 < epsilon([charge.mechanism], 1e-3) <= 0.5
        std = query.std(released)
        assert std == pytest.approx(charge.mechanism.noise_std)
        with pytest.raises(BudgetExceeded):
            release_alone(
                query, HospitalUnits(records=cohort), ledger, site="here", length=query.size, epsilon=2.0
            )
        assert len(ledger.state.charges) == 8
    assert 0.5 * std < np.sqrt(np.mean(np.square(found))) < 1.6 * std  # 24 numbers: wrong once in 10,000 runs


def test_several_findings_per_image_are_refused_before_anything_is_charged():
    """Their sum would fail at the site, which then pays for nothing but noise."""
    with pytest.raises(InvalidValue, match="several findings"):
        CohortCountsQuery.over(records(head=FINDINGS), "patient")
