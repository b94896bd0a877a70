"""One significance for what an audit plans and what it judges; words that say what was attacked."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from tests.audit.test_audit import QUICK, arena, dataset, setup_of, study

from fedveil.audit import ATTACKERS, Effort, audit
from fedveil.audit.attacker import Attempt, claim_of
from fedveil.audit.evidence import OneRun, TwoWorlds
from fedveil.audit.runner import _result
from fedveil.audit.white_box import FEWEST
from fedveil.errors import InvalidValue
from fedveil.privacy import Mechanism


def always_right(needed: int, setup, claim, plain) -> Attempt:
    return Attempt(
        attacker="white box",
        release="study",
        claim=claim,
        plain=plain,
        evidence=TwoWorlds(0, needed, needed, needed),
        curve=np.zeros((2, 2)),
        area=1.0,
        executions=2 * needed,
        what="",
    )


def test_what_an_audit_accepts_can_contradict_the_claim():
    """The needed executions are computed with the significance of the verdict, for as many attempts as there are."""
    claim, plain = claim_of((Mechanism(1.0, 1.0, 1),), 1e-5)
    ring = arena(study(trust="site"))
    most = sum(one.most(ring.agreement) for one in ATTACKERS.values())
    assert most == 3 + 1 + 3 + 1 + 1
    setup = setup_of(ring, most)
    needed = TwoWorlds.needed(claim, setup.significance)
    assert needed > TwoWorlds.needed(claim, 1 - setup.confidence)
    attempts = [always_right(needed, setup, claim, plain)] * most
    assert all(one.contradicted for one in _result(setup, attempts, [], 0.0).findings)


def test_an_audit_that_could_not_contradict_at_its_joint_significance_is_refused(tmp_path):
    """As many executions as one attempt alone needs are too few for four."""
    ring = arena(study(trust="site"))
    training, _ = claim_of(
        tuple(one.mechanism for one in ring.agreement.releases), ring.agreement.target.delta
    )
    effort = replace(QUICK, attackers=("white box",))
    alone = max(
        2 * TwoWorlds.needed(one, 1 - effort.confidence)
        for one in (
            training,
            *(claim_of((two.mechanism,), ring.agreement.target.delta)[0] for two in ring.agreement.releases),
        )
    )
    with pytest.raises(InvalidValue, match=f"{alone} executions of each world"):
        audit(study(trust="site"), tmp_path, dataset=dataset(), effort=replace(effort, trials=alone))


def test_both_bounds_of_one_run_share_the_significance():
    """They follow from different theorems, so their errors are different events."""
    run = OneRun(200, 200, 150, 75)
    for claim in claim_of((Mechanism(1.0, 1.0, 1),), 1e-5):
        leak = run.leak(claim, 0.05)
        assert claim.excluded_by_guesses(200, 200, 150, 0.025, leak)
        assert not claim.excluded_by_guesses(200, 200, 150, 0.025, 1.002 * leak)
        needed = OneRun.needed(claim, 0.05)
        assert claim.excluded_by_guesses(needed, needed, needed, 0.025, 1.0)
        assert not claim.excluded_by_guesses(needed - 1, needed - 1, needed - 1, 0.025, 1.0)


def test_a_part_of_the_rounds_is_not_called_the_whole_study(tmp_path):
    made = study(trust="site")
    half = 2 * FEWEST * arena(made).agreement.main.dimension
    with mock.patch("fedveil.audit.white_box.NUMBERS", half):
        result = audit(made, tmp_path, dataset=dataset(), effort=replace(QUICK, attackers=("white box",)))
    whole = next(one for one in result.findings if one.release == "study")
    assert whole.covered == "2 of 4 rounds of gradients"
    assert "2 of 4 rounds" in whole.what
    assert whole.subject == "the study, but only 2 of 4 rounds of gradients"
    assert whole.epsilon < result.epsilon
    assert f"of a stated {result.epsilon:.3g}" in result.verdict
    assert "2 of 4 rounds" in result.verdict


def test_a_bound_of_zero_is_not_called_a_proof():
    claim, plain = claim_of((Mechanism(1.0, 1.0, 1),), 1e-5)
    setup = setup_of(arena(study(trust="site")), 1)
    attempt = replace(always_right(9, setup, claim, plain), evidence=TwoWorlds(50, 100, 50, 100))
    result = _result(setup, [attempt], [], 0.0)
    assert "proved anything" in result.verdict
    assert ">=" not in result.verdict
    assert result.findings[0].proved == ("nothing", "nothing")


def test_a_calibrated_study_is_audited_and_what_was_left_out_is_named(tmp_path):
    made = study(epsilon="calibrated", max_epsilon=3.0, pilot_epsilon=1.0, tolerance=0.45, rounds=3)
    effort = Effort(trials=600, sessions=1, canaries=80, references=2, confidence=0.9)
    result = audit(made, tmp_path, dataset=dataset(), effort=effort)
    assert not result.contradicted
    assert {one.attacker for one in result.findings} == set(ATTACKERS)
    assert any(one.startswith("Not attacked by the protocol attacker") for one in result.notes)
    assert not any("level" in one.release for one in result.findings if one.attacker == "protocol")
