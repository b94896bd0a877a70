"""One price: what a plan states, what hospitals approve and what their ledgers are charged is the same number."""

import pytest
from tests.deploy.hospital import SITES, set_up, write_images

from fedveil import report
from fedveil.data import load
from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.site.approvals import Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.review import review
from fedveil.federation import Coordinator, InProcess
from fedveil.learning.released import score_statistics
from fedveil.planning import Configuration, PlanRequest, make_plan
from fedveil.privacy import verify_ledger
from fedveil.study import RunDirectory, Study, run
from fedveil.study.recipes import Recipe

OWN = {"personal_share": 0.2, "personal_calibration_share": 0.1}
GRID = {
    "all units": ({}, {}),
    "sampled": ({"sampling_rate": 0.5}, {}),
    "few sampled": ({"sampling_rate": 0.25, "rounds": 6}, {"evaluation_share": 0.1}),
    "one shot": ({"method": "one-shot"}, {"evaluation_share": 0.1, "calibration_share": 0.1}),
    "averaging": ({"method": "averaging", "units": 90, "local_steps": 2}, {}),
    "averaging, sampled": ({"method": "averaging", "units": 90, "local_steps": 2, "sampling_rate": 0.5}, {}),
    "own models": ({"units": 90}, OWN),
}


def study_of(tmp_path, trust, training, privacy) -> Study:
    source = write_images(tmp_path / "all.npz", 120, seed=4)
    return Study().with_changes(
        {
            "study": {"name": "priced"},
            "data": {"source": str(source), "image_size": 8, "sites": {"count": 3, "scheme": "iid"}},
            "model": {"features": "pixels"},
            "training": {"rounds": 3, **training},
            "privacy": {"epsilon": 2.0, "delta": 1e-3, "trust": trust, **privacy},
            "report": {"examples": 0},
        }
    )


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
@pytest.mark.parametrize("kind", GRID)
def test_what_is_planned_is_what_is_approved_is_what_is_charged(tmp_path, monkeypatch, kind, trust):
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        score_statistics, "LEAST_WEIGHT", 0.0
    )  # a calibration that noise drowns is not charged
    study = study_of(tmp_path, trust, *GRID[kind])
    planned = make_plan(study)
    result = run(RunDirectory.create(tmp_path / "run", study))
    charged = [verify_ledger(path).spent() for path in sorted((tmp_path / "run" / "ledgers").glob("*.jsonl"))]
    assert charged == [pytest.approx(planned.guarantee.epsilon, rel=1e-12)] * 3
    assert result["guarantee"]["epsilon"] == pytest.approx(planned.guarantee.epsilon, rel=1e-12)
    assert 1.99 < planned.guarantee.epsilon <= 2, (
        "nothing of the target is left, and nothing beyond it is spent"
    )
    assert report.load(tmp_path / "run").recomputed_epsilon == pytest.approx(
        planned.guarantee.epsilon, rel=1e-12
    )
    rounds = (tmp_path / "run" / "rounds.jsonl").read_text() if result["rounds"] else ""
    assert rounds.count("epsilon_spent") == result["rounds"]

    folder = set_up(tmp_path, Identity.create(tmp_path / "coordinator.key"), SITES[0])
    offer = Offer.make(study, SITES, load(study.data.source, image_size=8))
    studies = Studies(folder / "studies")
    found = review(SiteConfig.load(folder), studies.read(studies.add(offer)))
    assert found.guarantee.epsilon == pytest.approx(planned.guarantee.epsilon, rel=1e-12)
    assert found.after == pytest.approx(planned.guarantee.epsilon, rel=1e-12)
    assert found.alone == pytest.approx(planned.epsilon_alone, rel=1e-12)

    recipe = Recipe(method=study.training.method)
    plan_request = PlanRequest(cohorts=(32,) * 3, trusts=(trust,), recipes=(recipe,), study=study)
    agreement = plan_request.agreement(Configuration(unit="patient", trust=trust, recipe=recipe), 2.0)
    assert agreement.planned.epsilon == pytest.approx(planned.guarantee.epsilon, rel=1e-4)
    coordinator = Coordinator(
        agreement, InProcess([]), charged={one.name: one.mechanism.steps for one in agreement.releases}
    )
    assert coordinator.epsilon_spent() == agreement.planned.epsilon
