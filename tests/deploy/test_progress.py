"""What `fedveil federation status` says, from real run directories and what `coordinate` notes."""

import json
import os

import pytest
from typer.testing import CliRunner

from fedveil.cli import deploy as verbs
from fedveil.deploy.coordinator.progress import REMEDIES, noted, progress
from fedveil.deploy.coordinator.transport import SITE_STATES
from fedveil.deploy.locks import is_locked, turn
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.errors import InvalidValue

LINES = [
    {
        "round": 1,
        "sites": ["north", "south"],
        "dropped": [{"site": "west", "reason": "unreachable"}],
        "seconds": 30.0,
    },
    {"round": 2, "sites": ["north", "south", "west"], "dropped": [], "seconds": 60.0},
]


@pytest.fixture
def home(tmp_path):
    make_kits(
        tmp_path / "kits", name="town", hospitals=["north", "south", "west"], hosts=["x.example"], port=9443
    )
    (tmp_path / "run").mkdir()
    return tmp_path / "kits" / "coordinator"


def say(home, *options: str):
    return CliRunner().invoke(verbs.federation, ["status", str(home), *options])


def test_a_study_is_followed_from_its_offer_to_its_end(home, tmp_path):
    run = tmp_path / "run"
    assert say(home).stdout == "no study has begun here\n"
    with noted(home, name="lungs", digest="ab" * 32, run=run, planned=6) as note:
        note({"north": "ready", "south": "pending", "west": "on fedveil 9.9", "east": "declined"})
        (one,) = progress(home)
        assert (one.state, one.rounds, one.seconds_left) == ("waiting", 0, None)
        assert one.todo == (
            "south: `fedveil site approve`, or decline, the study",
            "west: upgrade fedveil at the older end",
        )
        asked = say(home)
        assert asked.exit_code == 1
        assert "to do      south" in asked.stdout
        note({"north": "ready", "south": "ready", "west": "ready", "east": "declined"})
        text = "".join(json.dumps(line) + "\n" for line in LINES)
        (run / "rounds.jsonl").write_text(text + '{"round": 3, "si')
        (one,) = progress(home)
        assert (one.state, one.rounds, one.seconds_left, one.missed) == ("running", 2, 4 * 45.0, {"west": 1})
        assert not one.todo
        asked = say(home)
        assert asked.exit_code == 0
        assert "lungs: running, 2 of 6 rounds, about 3.0 minutes left" in asked.stdout
        assert "west ready (missed 1)" in asked.stdout
    (one,) = progress(home)
    assert (one.state, one.seconds_left) == ("interrupted", None)
    assert one.todo == (f"coordinator: repeat the command of {run} with --resume",)
    (run / "result.json").write_text("{}")
    listed = say(home, "--json")
    assert (listed.exit_code, json.loads(listed.stdout)[0]["state"]) == (0, "finished")


def test_two_studies_are_listed_and_one_without_a_run_is_not(home, tmp_path):
    for name in ("run", "other", "gone"):
        (tmp_path / name).mkdir(exist_ok=True)
        with noted(home, name=name, digest="ab" * 32, run=tmp_path / name, planned=1) as note:
            note({"north": "ready"})
    (tmp_path / "gone").rmdir()
    assert [one.name for one in progress(home)] == ["run", "other"]


def test_every_state_of_a_hospital_has_a_remedy():
    assert {*SITE_STATES, "absent", "stale", "invalid"} - {"ready"} == REMEDIES.keys()


def test_the_status_of_another_folder_is_refused(home, tmp_path):
    refused = say(tmp_path / "run")
    assert refused.exit_code == 2


@pytest.mark.parametrize(
    ("note", "rounds"),
    [
        ('{"name": "lu', None),
        ("[]", None),
        ('{"name": "lungs"}', None),
        (None, "{damaged\n"),
        (None, "3\n"),
        (None, '{"dropped": [{}]}\n'),
    ],
)
def test_a_damaged_file_is_named(home, tmp_path, note, rounds):
    with noted(home, name="lungs", digest="ab" * 32, run=tmp_path / "run", planned=1) as say_so:
        say_so({"north": "ready"})
    (path,) = (home / "studies").glob("*.json")
    if note is not None:
        path.write_text(note)
    if rounds is not None:
        (tmp_path / "run" / "rounds.jsonl").write_text(rounds)
    with pytest.raises(InvalidValue, match=f"{path.name}.*cannot be read"):
        progress(home)


def test_a_studys_name_is_printed_as_it_is(home, tmp_path):
    with noted(home, name="lungs [/b]", digest="ab" * 32, run=tmp_path / "run", planned=1) as say_so:
        say_so({"north": "ready"})
    assert say(home).stdout.startswith("lungs [/b]: interrupted")


def test_looking_for_a_lock_needs_no_permission_to_write(tmp_path, monkeypatch):
    """Also where the permissions of a file do not bind the user who runs the tests."""
    path, flags, opened = tmp_path / "lock", [], os.open
    assert not is_locked(path)
    assert not path.exists()
    with turn(path):
        monkeypatch.setattr(
            os, "open", lambda name, how, *mode: flags.append(how) or opened(name, how, *mode)
        )
        assert is_locked(path)
    assert not is_locked(path)
    assert all(how & (os.O_RDWR | os.O_WRONLY | os.O_CREAT) == 0 for how in flags)
