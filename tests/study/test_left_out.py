"""A hospital that was left out for breaking the protocol is named in the log, the rounds, the result and the page."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fedveil.federation import InProcess, Reply
from fedveil.report import write_report
from fedveil.study import RunDirectory, run
from fedveil.study.progress import Progress
from fedveil.study.runner import Hospitals
from fedveil.study.simulation import Simulated


class Spoilt(InProcess):
    """Sites in process, of which one answers with NaN from its third answer on."""

    def __init__(self, whole: InProcess, bad: str) -> None:
        self._sites, self._bad, self._left = whole._sites, bad, 2

    def exchange(self, requests):
        answers = dict(super().exchange(requests))
        answer = answers.get(self._bad)
        if isinstance(answer, Reply):
            self._left -= 1
            if self._left < 0:
                answers[self._bad] = replace(answer, vector=answer.vector * np.nan)
        return answers


class OneSpoilt(Hospitals):
    """The hospitals of a simulation, one of them spoilt."""

    def prepare(self, study):
        return Simulated().prepare(study)

    @contextmanager
    def join(self, prepared, task, directory):
        with Simulated().join(prepared, task, directory) as joined:
            yield replace(joined, transport=Spoilt(joined.transport, joined.agreement.sites[1]))


class Notes(Progress):
    """Keeps what is shown beside the bar."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int, done: int = 0) -> None:
        del name, total, done

    def advance(self, count: int = 1, note: str = "") -> None:
        del count
        self.notes.append(note)


def test_a_hospital_that_is_left_out_is_named_everywhere(study, tmp_path, caplog):
    small = study(federation={"min_sites": 2})
    directory, progress = RunDirectory.create(tmp_path / "run", small, simulated=True), Notes()
    result = run(directory, OneSpoilt(), progress=progress)
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    bad = next(one["dropped"][0]["site"] for one in rounds if one["dropped"])
    assert result["rounds"] == 6
    assert [one["dropped"] for one in rounds if one["dropped"]] == [[{"site": bad, "reason": "invalid"}]]
    assert bad not in rounds[-1]["sites"]
    assert any(f"{bad} was left out of the last rounds: it sent" in note for note in result["notes"])
    assert f"{bad} is left out for the rest of this run" in caplog.text
    assert f"without {bad}" in progress.notes[-1]
    page = write_report(tmp_path / "run").read_text()
    assert f"{bad} was left out of the last rounds" in page
