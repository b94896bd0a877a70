"""What goes on in a federation: each study's hospitals and rounds, and who has to do what.

`coordinate` notes where a study's run directory is and what each hospital said last, in ``studies/`` of the
coordinator's folder. All else is read from the run directory, which nothing needs to be running for.
"""

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fedveil.deploy.locks import is_locked, turn
from fedveil.errors import InvalidValue, StudyError
from fedveil.io import write_json

__all__ = ["REMEDIES", "StudyProgress", "finished_run", "noted", "progress"]

State = Literal["waiting", "running", "interrupted", "finished"]

REMEDIES = {
    "absent": "start the site service and the node",
    "unknown": "wait: the study is being offered",
    "pending": "`fedveil site approve`, or decline, the study",
    "declined": "nothing; the study takes place without it",
    "loading": "wait: its images are being read",
    "refused": "see the site service's log for the reason",
    "stale": "synchronise the clocks of both machines by NTP",
    "invalid": "check its software and its key",
}
"""What a hospital in each state does next."""

_RECENT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProgress:
    """One study of a federation.

    Attributes:
        name: as its study file names it.
        digest: of its agreement, by which hospitals approve it.
        run: its run directory.
        state: waiting for hospitals, running, interrupted before its end, or finished.
        hospitals: what each hospital said of the study when it began.
        rounds: rounds of training that are done, of ``planned``.
        seconds_left: estimate for the rest, from the last rounds; None without one.
        missed: by hospital, the rounds that it was left out of.
        todo: who has to do what, one sentence each; empty if nobody has.
    """

    name: str
    digest: str
    run: str
    state: State
    hospitals: Mapping[str, str]
    rounds: int
    planned: int
    seconds_left: float | None
    missed: Mapping[str, int]
    todo: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@contextmanager
def noted(
    folder: Path, *, name: str, digest: str, run: Path, planned: int
) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """While the context is open the study counts as going on; the function stores what its hospitals said last."""
    studies, place = folder / "studies", str(run.resolve())
    studies.mkdir(mode=0o700, exist_ok=True)
    path = studies / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    values = {"name": name, "digest": digest, "run": place, "planned": planned}
    with turn(path.with_suffix(".lock")):
        yield lambda hospitals: write_json(path, {**values, "hospitals": dict(hospitals)})


def progress(folder: Path) -> tuple[StudyProgress, ...]:
    """The studies of a coordinator's folder whose run directories exist; the one that was noted last is last.

    Raises:
        InvalidValue: a note of a study, or its round log, is damaged.
    """
    notes = sorted((folder / "studies").glob("*.json"), key=lambda path: path.stat().st_ctime_ns)
    found = (_readable(path) for path in notes)
    return tuple(one for one in found if one is not None)


def _readable(path: Path) -> StudyProgress | None:
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidValue(
            f"{path}, or the rounds.jsonl of the run directory that it names, cannot be read ({error!r})",
            "both hold JSON that the coordinator wrote",
            "restore the damaged file from a copy, or resume the study, which writes the first one again",
        ) from None


def _read(path: Path) -> StudyProgress | None:
    values = json.loads(path.read_text(encoding="utf-8"))
    run = Path(values["run"])
    if not run.is_dir():
        return None
    lines = _lines(run / "rounds.jsonl")
    seconds = [float(line["seconds"]) for line in lines if line.get("seconds") is not None][-_RECENT:]
    left = max(0, values["planned"] - len(lines))
    state: State
    if (run / "result.json").exists():
        state = "finished"
    elif not is_locked(path.with_suffix(".lock")):
        state = "interrupted"
    else:
        state = "running" if lines else "waiting"
    return StudyProgress(
        **{name: values[name] for name in ("name", "digest", "run", "planned", "hospitals")},
        state=state,
        rounds=len(lines),
        seconds_left=left * statistics.median(seconds) if seconds and state == "running" else None,
        missed=dict(Counter(one["site"] for line in lines for one in line.get("dropped", ()))),
        todo=_todo(state, values["hospitals"], run),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a round log; the last may still be written."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _todo(state: State, hospitals: Mapping[str, str], run: Path) -> tuple[str, ...]:
    match state:
        case "finished":
            return ()
        case "interrupted":
            return (f"coordinator: repeat the command of {run} with --resume",)
        case _:
            return tuple(
                f"{site}: {REMEDIES.get(said, 'upgrade fedveil at the older end')}"
                for site, said in hospitals.items()
                if said != "ready" and not REMEDIES.get(said, "").startswith("nothing")
            )


def finished_run(run: Path, rule: str) -> tuple[str, list[str]]:
    """The digest of a finished run's agreement, and its hospitals.

    Raises:
        StudyError: the folder holds no finished run; ``rule`` says why one is needed.
    """
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        return str(provenance["study_digest"]), [str(site["name"]) for site in result["sites"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise StudyError(
            f"{run} holds no finished run", rule, "give the directory that `fedveil coordinate` wrote"
        ) from None
