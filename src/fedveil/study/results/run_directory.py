"""The run directory: complete or resumable, never partially written.

``result.json`` is written last, so its presence means that the run is complete. Until then ``checkpoint.npz`` holds
the state after the last finished round, and ``rounds.jsonl`` is truncated to it on resume.
"""

import fcntl
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import StudyError
from fedveil.io import json_line, write_atomic, write_json
from fedveil.names import check_site_name
from fedveil.study.results.schema import Result, RoundLine
from fedveil.study.settings.schema import Study

__all__ = ["RunDirectory"]


class RunDirectory:
    """The files of one run. Open it with ``with``: two processes cannot work on the same run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    @classmethod
    def create(cls, path: Path, study: Study, *, simulated: bool = True) -> "RunDirectory":
        """Make a new run directory; refuses an existing path. Without ``simulated`` it has no ledgers: hospitals
        hold them."""
        if path.exists():
            complete = (path / "result.json").exists()
            remedy = (
                "choose another --out, or delete it"
                if complete
                else "continue with --resume, or choose another --out"
            )
            raise StudyError(
                f"{path} exists{' and holds a finished run' if complete else ''}",
                "a run never overwrites files",
                remedy,
            )
        path.mkdir(mode=0o700, parents=True)  # it holds test images and names of patients
        if simulated:
            (path / "ledgers").mkdir()
        write_atomic(path / "study.toml", lambda file: file.write(study.to_toml().encode()))
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, study: Study | None = None) -> "RunDirectory":
        """Open an unfinished run to resume it; refuses a finished one and another study's."""
        if not (path / "study.toml").is_file():
            raise StudyError(
                f"{path} holds no run", "only a run that was started can be resumed", "check the path"
            )
        if (path / "result.json").exists():
            raise StudyError(
                f"{path} holds a finished run", "there is nothing to resume", "read it with `fedveil report`"
            )
        run = cls(path)
        if study is not None and _as_chosen(study, run.study()) != run.study():
            raise StudyError(
                f"{path} was started with another study",
                "a resumed run must have the same settings",
                f"use {path / 'study.toml'}, or start again in another directory",
            )
        return run

    def __enter__(self) -> "RunDirectory":
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StudyError(
                f"{self.path} is in use by another process",
                "one process works on a run at a time",
                "wait for it, or stop it",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def discard_unstarted(self) -> None:
        """Remove the directory if nothing was charged or computed in it, so that a mistake leaves nothing behind.

        If real hospitals hold the ledgers, a run that sent any request may have been charged.
        """
        if (self.path / "ledgers").exists():
            charged = any(file.read_bytes().count(b"\n") > 1 for file in self.path.glob("ledgers/*.jsonl"))
        else:
            charged = (self.path / "sessions").exists()
        if not (charged or (self.path / "checkpoint.npz").exists()):
            shutil.rmtree(self.path)

    def study(self) -> Study:
        """The resolved study that the run was started with."""
        return Study.load(self.path / "study.toml")

    def pin(self, study: Study) -> Study:
        """Store the study with what was chosen from its data; a resumed run reads it from here."""
        if study != self.study():
            write_atomic(self.path / "study.toml", lambda file: file.write(study.to_toml().encode()))
        return study

    def ledger(self, site: str) -> Path:
        """Path of a simulated site's ledger."""
        return self.path / "ledgers" / f"{check_site_name(site)}.jsonl"

    def personal(self, site: str) -> Path:
        """Folder of a simulated site's own model, if the study has them."""
        return self.path / "personal" / check_site_name(site)

    def scratch(self, name: str, study: Study) -> "RunDirectory":
        """A directory inside this one for an alternative that is trained for comparison; new or resumed."""
        path = self.path / "baselines" / name
        return type(self)(path) if path.exists() else type(self).create(path, study)

    def begin_session(self) -> int:
        """Count this process's start, durably; returns a number that no earlier process on this run had."""
        path = self.path / "sessions"
        number = (int(path.read_text()) if path.exists() else 0) + 1
        write_atomic(path, lambda file: file.write(str(number).encode()))
        return number

    def note_charged(self, charged: Mapping[str, int]) -> None:
        """Store how many steps of each release were requested, durably and before each request."""
        write_json(self.path / "charged.json", dict(charged))

    def charged(self) -> dict[str, int]:
        """The last stored numbers of steps."""
        path = self.path / "charged.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def save_checkpoint(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Replace the checkpoint."""
        write_atomic(self.path / "checkpoint.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def load_checkpoint(self) -> dict[str, npt.NDArray[Any]] | None:
        """The last checkpoint; None if no round was finished."""
        path = self.path / "checkpoint.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise StudyError(
                f"{path} is damaged ({error})", "a run is resumed from its checkpoint", "start it again"
            ) from None

    def append_round(self, line: RoundLine) -> None:
        """Add one line to the round log."""
        with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json_line(line.model_dump(by_alias=True)))

    def cut_rounds(self, finished: int) -> None:
        """Drop the log's lines after the last checkpointed round, and an incomplete last line."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record["round"] > finished:
                break
            kept.append(line + "\n")
        write_atomic(path, lambda file: file.write("".join(kept).encode()))

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run."""
        write_json(self.path / name, value)

    def finish(self, result: Result) -> None:
        """Write the result, which makes the run complete, and delete the files that only a resume needs."""
        write_json(self.path / "result.json", result.to_dict())
        (self.path / "checkpoint.npz").unlink(missing_ok=True)
        (self.path / "sessions").unlink(missing_ok=True)
        (self.path / "charged.json").unlink(missing_ok=True)
        (self.path / ".lock").unlink(missing_ok=True)


def _as_chosen(study: Study, begun: Study) -> Study:
    """The study, with the settings that its data determines as chosen when the run began."""
    keys = ("channels", "classes", "task")
    left = {key: getattr(begun.data, key) for key in keys if not getattr(study.data, key)}
    model = study.model
    if model.dimension is None:
        model = model.model_copy(update={"dimension": begun.model.dimension})
    spec = model.encoder.spec(model.features)
    if spec is not None and not spec.sha256 and begun.model.encoder.sha256:
        model = model.model_copy(update={"features": begun.model.features, "encoder": begun.model.encoder})
    if model.start is not None and not model.start_sha256:
        model = model.model_copy(update={"start_sha256": begun.model.start_sha256})
    return study.model_copy(update={"data": study.data.model_copy(update=left), "model": model})
