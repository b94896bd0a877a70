"""Who is responsible for a study: in its digest, before the eyes of who approves, and in the report."""

from dataclasses import replace

from tests.deploy.hospital import Hospital, study_text, write_images
from typer.testing import CliRunner

from fedveil import report
from fedveil.cli.main import app
from fedveil.deploy.offer import Offer
from fedveil.deploy.records.facts import facts
from fedveil.deploy.site.approvals import Studies
from fedveil.study import RunDirectory, Study, run

STATED = {
    "controllers": ["North Hospital, 1 Hill Road", "South Hospital"],
    "purpose": "triage of\n  chest X-rays",
    "legal_basis": "Article 9(2)(j); ethics vote 12/26",
    "retention": "10 years",
    "contact": "dpo@north.example",
}


def test_governance_is_in_the_digest_and_shown_before_approving(make_hospital):
    hospital: Hospital = make_hospital(approve=False)
    offer = replace(hospital.offer, study=hospital.offer.study.with_changes({"governance": STATED}))
    assert offer.agreement().digest != hospital.agreement.digest
    again = Offer.from_dict(offer.to_dict())
    assert again.agreement().digest == offer.agreement().digest
    digest = Studies(hospital.folder / "studies").add(again)
    shown = CliRunner().invoke(app, ["site", "studies", str(hospital.folder)]).output
    for text in ("North Hospital, 1 Hill Road; South Hospital", "triage of chest X-rays", "10 years", digest):
        assert text in shown
    assert "not stated" in shown, "of the other study"


def test_who_approves_reads_the_task_and_the_subgroups(make_hospital):
    """What labels mean, and whose accuracy is released, are settings like others: they were not shown."""
    hospital: Hospital = make_hospital(approve=False)

    def shown(**changes: object) -> dict[str, str]:
        offer = replace(hospital.offer, study=hospital.offer.study.with_changes(changes))
        listed = replace(Studies(hospital.folder / "studies").read(hospital.agreement.digest), offer=offer)
        return dict(facts(hospital.service.config, listed))

    plain = shown()
    assert plain["task"] == "classes: an image has exactly one"
    assert plain["classes"] == "normal, ill"
    assert "subgroups" not in plain
    by_sex = shown(data={"subgroup": "sex"}, privacy={"subgroup_share": 0.1})
    assert by_sex["subgroups"] == "held-out patients by sex: female, male, other or unknown"
    by_scanner = {"subgroup": "scanner", "subgroup_values": ["A", "B"]}
    scanners = shown(data=by_scanner, privacy={"subgroup_share": 0.1})
    assert scanners["subgroups"] == "held-out patients by scanner: A, B, other or unknown"
    found = shown(data={"task": "findings"})
    assert (found["task"][:9], found["findings"]) == ("findings:", "normal, ill")
    assert shown(data={"task": "grades"})["grades"] == "normal, ill"


def test_governance_stands_in_the_report(tmp_path):
    source = write_images(tmp_path / "all.npz", 60, seed=4)
    study = Study.parse(study_text(source=str(source), rounds=1)).with_changes(
        {"governance": STATED, "data": {"sites": {"count": 3, "scheme": "iid"}}, "report": {"examples": 0}}
    )
    directory = RunDirectory.create(tmp_path / "run", study)
    run(directory)
    page = report.write_report(directory.path).read_text()
    for text in ("South Hospital", "triage of chest X-rays", "ethics vote 12/26", "dpo@north.example"):
        assert text in page
    assert "Study digest" in page
