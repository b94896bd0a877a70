"""Audits from a program: `audit_study`, by the same path as the command."""

import tempfile
from pathlib import Path

from fedveil.audit import AuditResult, Effort, audit
from fedveil.library.runs import AnyPath, Source, resolved_study
from fedveil.study import Progress, Study

__all__ = ["audit_study"]


def audit_study(
    study: Study | AnyPath | None = None,
    data: Source = None,
    *,
    directory: AnyPath | None = None,
    own_images: bool = False,
    progress: Progress | None = None,
    **effort: object,
) -> AuditResult:
    """Attack a study's own code with canary patients, and prove lower bounds on its epsilon.

    Attacks use synthetic or public patients, in this process; no ledger is charged.

    Args:
        study: a study or its file; default one with every default.
        data: a data set, or a source as in a study file; default the study's own.
        directory: where ``audit.json`` is written and an interrupted audit goes on, such as a run's; by default the
            result is only returned.
        own_images: attack on the study's own images; the result is then as confidential as they are.
        progress: told of finished pieces of work.
        effort: ``confidence``, ``attackers``, ``trials``, ``sessions``, ``canaries`` and ``references``, as
            `fedveil.audit.Effort` takes them.

    Raises:
        InvalidValue: too few trials or canaries for the confidence; the message says how many it takes.
        DataError, StudyError: the data or the settings cannot be used.
    """
    found, dataset = resolved_study(study, data)
    wanted = Effort(**effort)  # type: ignore[arg-type]

    def into(folder: Path) -> AuditResult:
        return audit(found, folder, dataset=dataset, own_images=own_images, effort=wanted, progress=progress)

    if directory is not None:
        return into(Path(directory))
    with tempfile.TemporaryDirectory(prefix="fedveil-audit-") as temporary:
        return into(Path(temporary) / "audit")
