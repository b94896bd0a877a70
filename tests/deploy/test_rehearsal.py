"""An audit of running services: canaries in real cohorts, real rounds over the network of this machine."""

from pathlib import Path
from unittest import mock

import pytest

from fedveil.audit import Effort, audit
from fedveil.audit.one_run import ManyCanaries
from fedveil.deploy import rehearsal
from fedveil.deploy.rehearsal import Rehearsal
from fedveil.errors import InvalidValue, StudyError
from fedveil.privacy import verify_ledger
from fedveil.study import Study

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")

TEXT = """
[data]
image_size = 8
[data.sites]
count = 3
[model]
features = "pixels@8"
[training]
rounds = 2
[privacy]
epsilon = 1
trust = "secure-aggregation"
"""
SURE = Effort(attackers=(ManyCanaries.name,), canaries=200, confidence=1 - 1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's own, in the coordinator's process
def test_canaries_of_running_services_are_attacked_and_the_sound_code_is_not_contradicted(tmp_path):
    """The services train on what the audit wrote: their ledgers are charged, and their programs end."""
    started, charged = [], set()
    start, stop = rehearsal._start, rehearsal._stop

    def watched(stack, folder, name, arguments):
        start(stack, folder, name, arguments)
        started.append(folder)

    def stopped(process):
        charged.update(
            folder for folder in started[-6:] if verify_ledger(folder / "site" / "ledger.jsonl").charges
        )
        stop(process)
        assert process.poll() is not None

    with mock.patch.object(rehearsal, "_start", watched), mock.patch.object(rehearsal, "_stop", stopped):
        result = audit(Study.parse(TEXT), tmp_path, effort=SURE, hospitals=Rehearsal())
    assert len(started) == 12
    assert charged == set(started)
    assert not result.contradicted
    (found,) = result.findings
    assert found.executions == 2
    assert "between 3 site services" in " ".join(result.notes)


@pytest.mark.parametrize(
    ("change", "effort", "error", "words"),
    [
        ("", Effort(), InvalidValue, "only the attacker 'one run'"),
        ("\nevaluation_share = 0.1", SURE, StudyError, "subgroup_share is above 0"),
    ],
)
def test_what_services_cannot_be_attacked_by_is_refused(tmp_path, change, effort, error, words):
    with pytest.raises(error, match=words):
        audit(Study.parse(TEXT + change), tmp_path, effort=effort, hospitals=Rehearsal())


def test_a_network_is_refused(tmp_path):
    text = TEXT.replace('features = "pixels@8"', 'network = "cnn"')
    with pytest.raises(StudyError, match="the study trains a network"):
        audit(Study.parse(text), tmp_path, effort=SURE, hospitals=Rehearsal())
