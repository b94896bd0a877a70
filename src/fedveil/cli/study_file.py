"""Shared by the commands that take a study file: arguments, and the study with the command line's overrides."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedveil.study import Study

__all__ = ["AsJson", "Data", "Epsilon", "StudyFile", "Trust", "read_study"]

StudyFile = Annotated[Path, typer.Argument(help="The study file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Data = Annotated[str | None, typer.Option("--data", help="Data source; overrides the study's data.source.")]
Epsilon = Annotated[float | None, typer.Option("--epsilon", help="Overrides privacy.epsilon.")]
Trust = Annotated[str | None, typer.Option("--trust", help="Overrides privacy.trust.")]


def read_study(
    path: Path, data: str | None, epsilon: float | None, trust: str | None, baselines: bool = False
) -> "Study":
    """The study with the command line's overrides, checked as if they were in the file."""
    from fedveil.study import Study, resolve

    study = resolve(Study.load(path), path.parent)
    changes: dict[str, dict[str, object]] = {"data": {}, "privacy": {}, "report": {}}
    if data is not None:
        changes["data"]["source"] = data
    if epsilon is not None:
        changes["privacy"]["epsilon"] = epsilon
    if trust is not None:
        changes["privacy"]["trust"] = trust
    if baselines:
        changes["report"]["baselines"] = True
    return resolve(study.with_changes(changes), Path())
