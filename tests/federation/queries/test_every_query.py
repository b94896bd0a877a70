"""What every registered query promises, whichever it is: an inherited contract, over real learners."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federation.queries.hospital import (
    FINDINGS,
    GRADES,
    HEAD,
    ONCE,
    asked,
    hospital,
    instance,
    sent,
    task_of,
)

from fedveil.errors import InvalidValue
from fedveil.federation import ModelState, NoisySum, OneSum, Release, Rounds
from fedveil.federation.contributions import Contributions
from fedveil.federation.queries import QUERIES, Asking, CohortCountsQuery, HospitalUnits, asked_by, title_of
from fedveil.privacy import Mechanism

UNITS = ("patient", "image", "site")
EACH = [
    pytest.param(query, unit, head, id=f"{query.name}-{unit}-{task_of(head)}{'-once' * (head is ONCE)}")
    for query in QUERIES
    for unit in UNITS
    for head in (HEAD, FINDINGS, ONCE, GRADES)
    if instance(query, unit, head) is not None
]
SOURCE = Path(__file__).resolve().parents[3]


def length_of(query, head=HEAD):
    return query.size if isinstance(query, CohortCountsQuery) else query.length(head)


def test_every_query_is_final_frozen_named_once_and_told():
    assert len({query.name for query in QUERIES}) == len({query.title for query in QUERIES}) == len(QUERIES)
    for query in QUERIES:
        assert getattr(query, "__final__", False), f"{query.__name__} may be derived from"
        assert query.__dataclass_params__.frozen
        assert "**Bound" in query.__doc__, f"{query.__name__} does not say why its bound holds"
        assert query.adds
        assert query.purpose
        assert title_of(query.name) == query.title


def test_every_query_is_tried_here_for_patients():
    assert {query.name for query in QUERIES} == {
        one.values[0].name for one in EACH if one.values[1] == "patient"
    }


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 1.0, 3.0]))
def test_nobody_adds_more_than_the_bound_and_nobody_moves_what_others_add(query, unit, head, seed, clip_norm):
    """By itself, and by leaving: the sum over the others stays what it was, whoever they are."""
    one, (whole, names) = instance(query, unit, head), hospital(unit, head=head)
    generator = np.random.default_rng(seed)
    parameters, bound = sent(one, generator, head), one.bound(clip_norm)

    def add(here, units=None):
        return one.contribution(here, parameters, clip_norm, units)

    total, own = add(whole), names[one.part]
    assert total.shape == (length_of(one, head),)
    assert not add(whole, np.array([], dtype=np.int64)).any()
    if unit == "site":
        assert np.linalg.norm(total) <= bound * (1 + 1e-9)
        return
    alone = [add(whole, np.array([number])) for number in range(len(own))]
    assert max(np.linalg.norm(each) for each in alone) <= bound * (1 + 1e-9)
    np.testing.assert_allclose(np.sum(alone, axis=0), total, atol=1e-9 * max(1.0, np.abs(total).max()))
    gone = int(generator.integers(len(own)))
    rest = add(hospital(unit, int(own[gone]), head)[0])
    assert np.linalg.norm(total - rest) <= bound * (1 + 1e-9)
    np.testing.assert_allclose(total - rest, alone[gone], atol=1e-9 * max(1.0, np.abs(total).max()))


def asking(one, here, mechanism, head, seed=0, **changes):
    generator = np.random.default_rng(seed)
    values = {
        "hospital": here,
        "mechanism": mechanism,
        "parameters": sent(one, generator, head),
        "length": length_of(one, head),
        "generator": generator,
        "guarded": lambda compute: compute(),
    }
    return Asking(**(values | changes))


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
def test_a_site_answers_with_the_sum_over_the_units_that_are_drawn(query, unit, head):
    one, (here, _) = instance(query, unit, head), hospital(unit, head=head)
    steps = one.steps_per_round(unit)
    everyone = asking(one, here, Mechanism(0.0, 1.0, steps, unit=unit), head)
    answer = one.sum(everyone)
    assert answer.shape == (length_of(one, head),)
    if one.carried(unit) is not None:
        assert np.linalg.norm(answer) <= one.carried(unit)
        return
    if not isinstance(one, Rounds) or one.per_unit:
        expected = one.contribution(here, everyone.parameters, 1.0, None)
        np.testing.assert_array_equal(answer, expected)
    if unit != "site":
        sampled = asking(one, here, Mechanism(0.0, 1.0, steps, 0.5, unit), head)
        assert np.abs(one.sum(sampled)).sum() != pytest.approx(np.abs(answer).sum())


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
@pytest.mark.parametrize("change", [1.0, -1.0, 1e30, np.nan])
def test_a_site_without_a_usable_image_refuses_what_others_refuse_and_nothing_else(query, unit, head, change):
    """Or one patient decides whether a hospital declines: an answer about this patient, without noise."""
    one, (here, _) = instance(query, unit, head), hospital(unit, head=head)
    release = Release(
        query=one,
        mechanism=Mechanism(1.0, 1.0, one.steps_per_round(unit), unit=unit),
        dimension=length_of(one, head),
        parameters=one.sent_length(head),
    )

    def refused(place: HospitalUnits, parameters: np.ndarray) -> bool:
        try:
            Contributions("north", place, np.random.default_rng(0), head).check(release, parameters)
        except InvalidValue:
            return True
        return False

    even = np.full(head.classes, 0.5 if head.findings else 1 / head.classes)
    honest = np.concatenate([even, head.join(None, head.initial())])[-one.sent_length(head) :]
    honest = honest if one.sent_length(head) else honest[:0]
    empty = dataclasses.replace(here, learner=None)
    assert not refused(here, honest)
    assert not refused(empty, honest)
    for place in {0, len(honest) // 2, len(honest) - 1} if len(honest) else ():
        changed = honest.copy()
        changed[place] = change * (1 + abs(changed[place]))
        assert refused(here, changed) == refused(empty, changed)


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
def test_what_fails_at_a_site_is_noise_and_nothing_else(query, unit, head):
    """A unit that cannot be read must not decide whether the others are in the sum, or whether there is an answer."""
    one, (here, _) = instance(query, unit, head), hospital(unit, head=head)
    release = Release(
        query=one,
        mechanism=Mechanism(1.0, 1.0, one.steps_per_round(unit), unit=unit),
        dimension=length_of(one, head),
        parameters=one.sent_length(head),
    )
    broken = dataclasses.replace(here, learner=None, held_out=None, records=None)
    answer = Contributions("here", broken, np.random.default_rng(0)).of(
        release, sent(one, np.random.default_rng(0), head), private=True
    )
    assert np.isfinite(answer).all()
    assert one.carried(unit) is not None or not answer.any()


@pytest.mark.parametrize(("query", "unit", "head"), [one for one in EACH if one.values[0].part == "held-out"])
def test_a_hospital_that_holds_out_nobody_adds_nothing_also_where_no_noise_covers_a_failure(
    query, unit, head
):
    one, (here, _) = instance(query, unit, head), hospital(unit, head=head)
    nobody = asking(
        one,
        dataclasses.replace(here, held_out=None),
        Mechanism(0.0, 1.0, one.steps_per_round(unit), unit=unit),
        head,
    )
    assert not one.sum(nobody).any()


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
def test_what_comes_back_leads_to_a_finite_model(query, unit, head):
    one, (here, _) = instance(query, unit, head), hospital(unit, head=head)
    state = ModelState(model=head, parameters=head.join(None, head.initial()))
    total = np.random.default_rng(2).normal(size=length_of(one, head))
    released = NoisySum(total, 1.0)
    if isinstance(one, OneSum):
        assert one.sent(state).shape == (one.sent_length(head),)
        after = one.decode(released, state)
        assert after.parameters.shape == state.parameters.shape
        assert np.isfinite(after.parameters).all()
        assert after is not state
    elif isinstance(one, Rounds):
        found = one.direction(released, 4.0)
        assert np.linalg.norm(found.total) == pytest.approx(np.linalg.norm(total) / 4)
        assert found.variance == pytest.approx(1 / 16)
    else:
        assert here.records is not None


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
def test_a_mechanism_that_does_not_price_what_is_executed_is_refused(query, unit, head):
    one = instance(query, unit, head)
    steps = one.steps_per_round(unit)
    one.check(Mechanism(1.0, 1.0, steps, unit=unit))
    if one.bound(0.5) > 0.5:
        with pytest.raises(InvalidValue, match="clip norm"):
            one.check(Mechanism(1.0, 0.5, steps, unit=unit))
    if steps > 1:
        with pytest.raises(InvalidValue, match="local steps"):
            one.check(Mechanism(1.0, 1.0, steps + 1, unit=unit))


@pytest.mark.parametrize("method", ["gradient", "averaging", "one-shot"])
def test_one_query_of_a_study_takes_what_the_others_leave(method):
    study = asked("gradient", "patient")
    table = dict(study.settings["training"]) | {"method": method}
    study = dataclasses.replace(study, settings=dict(study.settings) | {"training": table})
    shares = [query.share(study) for query in asked_by(study)]
    assert shares.count(None) == 1
    assert 0 < sum(share for share in shares if share is not None) < 1


@pytest.mark.parametrize(("query", "unit", "head"), EACH)
def test_a_digest_binds_all_of_a_query(query, unit, head):
    told = json.loads(json.dumps(instance(query, unit, head).to_dict()))
    assert told["name"] == query.name
    assert set(told) == {"name", *(field.name for field in dataclasses.fields(query))}


def compared_to(node):
    """The constants that a comparison, a membership test or a case of a match names."""
    values = []
    if isinstance(node, ast.Compare):
        values = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        values = [node.value]
    parts = [part for one in values for part in getattr(one, "elts", [one])]
    return {part.value for part in parts if isinstance(part, ast.Constant)}


APART = ("describe.py", "exported_graph.py")


def test_nothing_but_queries_knows_one_by_name():
    """Coordinator, site, ledger, planner and report do not branch on one: a new one is a file, its test and a line.

    A hospital's description of its cohort asks for the one query that it is about; operators of torch have an argument
    called "training".
    """
    names, classes, found = {query.name for query in QUERIES}, {query.__name__ for query in QUERIES}, []
    root = SOURCE / "src" / "fedveil"
    others = [path for path in sorted(root.rglob("*.py")) if path.parent != root / "federation" / "queries"]
    assert len(others) > 150
    for path in others:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            known = {node.id} & classes if isinstance(node, ast.Name) else compared_to(node) & names
            if known and path.name not in APART:
                found.append(f"{path.name}:{node.lineno} knows {known}")
    assert not found


def test_the_privacy_page_lists_every_query():
    page = (SOURCE / "docs" / "privacy.md").read_text(encoding="utf-8")
    for query in QUERIES:
        setting = f"`privacy.{query.setting}`" if query.setting else "-"
        assert f"| {query.title} | {setting} | {query.adds} | {query.purpose} |" in page
