"""What monitoring sees of a site: exit codes, JSON, metrics; nothing about patients."""

import json
import logging
import socket

import pytest
from tests.deploy.hospital import WHO, Hospital, edit
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.cli.output.logs import JsonLine
from fedveil.deploy.provisioning.certificates import Authority
from fedveil.deploy.records.refusals import keep_refusals, read_refusals
from fedveil.privacy import Decision


def status(hospital: Hospital, *words: str) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(app, ["site", "status", str(hospital.folder), "--json", *words])
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def listening(make_hospital):
    """A hospital with a study on offer, whose service listens."""
    hospital = make_hospital(approve=False)
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(hospital.folder / "site.sock"))
        line.listen()
        yield hospital


def test_exit_codes_tell_well_from_waiting_from_broken(listening, tmp_path):
    code, found = status(listening)
    assert (code, found["exit_code"]) == (1, 1)
    assert found["studies"]["pending"] == 1
    assert any("waits for a decision" in text for text in found["warnings"])
    decision = Decision(act="declined", subject=listening.agreement.digest, reason="no", **WHO)
    listening.service.studies.decide(decision)
    code, found = status(listening)
    assert (code, found["warnings"], found["problems"]) == (0, [], [])
    edit(listening.folder / "site.toml", epsilon=21.0)
    code, found = status(listening)
    assert code == 1
    assert "site.toml states a budget of epsilon 21" in found["warnings"][0]
    (listening.folder / "studies" / f"{'ab' * 32}.json").write_text("{")
    assert status(listening)[0] == 2


def test_a_service_that_is_down_is_a_problem(hospital):
    code, found = status(hospital)
    assert code == 2
    assert not found["listening"]
    assert found["reserved"] == pytest.approx(2, abs=0.01), "an approved study reserves its whole cost"


def test_metrics_are_what_a_collector_reads_and_name_no_patient(listening, tmp_path):
    status(listening, "--prometheus", str(tmp_path / "fedveil.prom"))
    lines = (tmp_path / "fedveil.prom").read_text().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['fedveil_budget_epsilon{site="north"}'] == "20"
    assert values['fedveil_studies{site="north",state="pending"}'] == "1"
    assert values['fedveil_site_listening{site="north"}'] == "1"
    assert all(line.startswith(("# HELP fedveil_", "# TYPE fedveil_", "fedveil_")) for line in lines)
    assert not any("patient" in line for line in lines)


def test_refusals_are_kept_within_bounds_and_shown_newest_first(hospital, monkeypatch):
    monkeypatch.setattr("fedveil.deploy.records.refusals._LARGEST", 3000)
    handler = keep_refusals(hospital.folder)
    try:
        for _ in range(100):
            hospital.service.answer(b"garbage")
        hospital.service.answer(b"other garbage")
    finally:
        logging.getLogger("fedveil.site").removeHandler(handler)
        handler.close()
    assert "13 bytes arrived" in read_refusals(hospital.folder)[0][1]
    sizes = [path.stat().st_size for path in hospital.folder.glob("refusals.jsonl*")]
    assert len(sizes) == 2
    assert max(sizes) <= 3000


def test_a_log_line_as_json_is_one_object_whatever_it_holds():
    record = logging.LogRecord("fedveil.site", 30, "", 0, "refused: %s", ('a"\n\x1b[2J',), None)
    line = JsonLine().format(record)
    assert "\n" not in line
    values = json.loads(line)
    assert set(values) == {"time", "logger", "level", "message"}
    assert values["message"].isprintable()


@pytest.mark.parametrize(("days", "code"), [(825, 0), (29, 1), (-2, 2)])
def test_certificates_warn_before_they_end(tmp_path, monkeypatch, days, code):
    monkeypatch.setattr("fedveil.deploy.provisioning.certificates._SERVER_DAYS", days)
    if days < 0:
        monkeypatch.setattr("fedveil.deploy.provisioning.certificates._BEFORE_DAYS", 10)
    authority = Authority.create("town")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "superlink.pem").write_bytes(authority.certify(["fl.example.org"])[1])
    done = CliRunner().invoke(app, ["federation", "certificates", str(tmp_path)])
    assert done.exit_code == code
    assert ("fedveil federation renew" in done.output) is (code > 0)
