"""The command for a patient who withdraws."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import AsJson, By, Folder, Reason, Role, asked, load_site

__all__ = ["forget_patient"]


def forget_patient(
    patient: Annotated[str, typer.Argument(help="The patient, named as in the data.")],
    folder: Folder = Path("site"),
    by: By = None,
    role: Role = None,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave out a patient who withdraws, delete what was computed, and say what they took part in.

    After an interruption, repeat it.

    Example: fedveil site forget patient-17 site --reason "withdrew consent"
    """
    import numpy as np

    from fedveil.deploy.approval import record
    from fedveil.deploy.identity import Identity
    from fedveil.deploy.site.approvals import Studies
    from fedveil.deploy.site.offline import offline
    from fedveil.deploy.site.runtime import Cohorts
    from fedveil.privacy import Decision, verify_ledger

    with speak_plainly(), offline():
        config = load_site(folder)
        identity = Identity.load(folder / "identity.key")
        cohorts = Cohorts(config, identity)
        dataset = cohorts.everybody()
        here = dataset.subset(cohorts.own(dataset, np.arange(len(dataset))))
        name, place = asked(by, "Your name", ask=not yes), asked(role, "Your role", ask=not yes)
        why = asked(reason, "The reason", ask=not yes)
        decision = Decision(act="forgotten", subject="a patient", by=name, role=place, reason=why)
        if not yes:
            typer.confirm(f"Leave out {patient} from now on?", abort=True)
        state = verify_ledger(folder / "ledger.jsonl")
        forgotten = cohorts.forgotten
        found = forgotten.forget(patient, here, state)
        decisions = Studies(folder / "studies").decisions
        if decisions.last(found.record) is None:  # else it repeats an earlier one, to delete features again
            record(config, decision, subject=found.record)
        sentences = found.sentences(state.budget.unit)
        if as_json:
            values = {"record": found.record, "images": found.images, "studies": dict(found.studies)}
            print(json.dumps(values | {"epsilon": found.epsilon, "delta": found.delta, "words": sentences}))
            return
        for line in sentences:
            console.print(line, soft_wrap=True, markup=False)
        console.print(f"sealed record: {folder / 'forgotten' / found.record}.sealed", soft_wrap=True)
        console.print(f"deleted: {', '.join(map(str, forgotten.purged()))}", soft_wrap=True, markup=False)
        console.print("delete their images and rows in your own data too; they are not read again")
