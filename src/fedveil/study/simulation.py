"""A whole study on one machine: every site in this process, with the same protocol code as between hospitals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedveil.data import Dataset
from fedveil.errors import BudgetExceeded
from fedveil.federation import Agreement, Identity, InProcess, Policy, Site
from fedveil.privacy import Budget, Ledger
from fedveil.study.arrangement import ALTERNATIVES, arranged
from fedveil.study.calibrate import make_agreement
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.progress import Progress, Silent
from fedveil.study.results.outcome import HandedOver
from fedveil.study.results.personalization import has_own, own_model
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.results.trained_model import TrainedModel
from fedveil.study.runner import Hospitals, Joined, carry_out
from fedveil.study.settings.schema import Study
from fedveil.study.training import Evaluate, Trained, train

__all__ = ["Simulated", "run", "train_here"]

NOTHING = np.empty(0, dtype=np.int64)


def run(
    directory: RunDirectory, hospitals: Hospitals | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Run, or resume, the study of a run directory; return what ``result.json`` holds.

    Args:
        directory: the run's directory, which holds the study.
        hospitals: the study's sites; simulated by default.
        progress: told of stages and rounds.

    Raises:
        DataError, InvalidValue: the data or the settings cannot be used; nothing was charged.
        FederationError: too few sites remained; the run can be resumed.
    """
    return carry_out(directory, hospitals or Simulated(), progress or Silent())


@final
class Simulated(Hospitals):
    """Sites in this process, each over its share of one data set.

    Args:
        ledgers: open ledgers by site, to which successive studies are charged; by default each study has its own,
            whose budget is its cost.
        dataset: data in memory; by default the study's source is read.
        made: the class of each site; an audit has some that collude with its attacker.
    """

    def __init__(
        self,
        ledgers: Mapping[str, Ledger] | None = None,
        *,
        dataset: Dataset | None = None,
        made: Mapping[str, type[Site]] | None = None,
    ) -> None:
        self._ledgers, self._dataset, self._made = ledgers, dataset, made or {}

    def prepare(self, study: Study) -> Prepared:
        """Read the study's data and split it among the sites."""
        return prepare(study, self._dataset)

    @contextmanager
    def join(self, prepared: Prepared, task: Task, directory: RunDirectory) -> Iterator[Joined]:
        """Open sites that have admitted the study; close their ledgers at the end."""
        agreement = make_agreement(prepared.study, sites=tuple(prepared.sites), model=task.model)
        with ExitStack() as stack:
            ledgers = self._ledgers
            if ledgers is None:
                ledgers = _open_ledgers(stack, agreement, directory)
            sites = _sites(prepared, task, agreement, ledgers, self._made)
            yield Joined(
                agreement=agreement,
                transport=InProcess(sites),
                hand_over=lambda trained: HandedOver(
                    personal=_personal(sites, task, agreement, directory, trained)
                ),
                ledgers=lambda _: {name: ledger.state for name, ledger in ledgers.items()},
            )

    def baselines(
        self, prepared: Prepared, task: Task, directory: RunDirectory, progress: Progress
    ) -> dict[str, dict[str, Any]]:
        """Test metrics of the study's alternatives: the same training with other sites or another trust level."""
        if not prepared.study.report.baselines:
            return {}
        results = {}
        for name, (arrangement, private) in ALTERNATIVES.items():
            metrics = []
            for number, part in enumerate(arranged(prepared, arrangement, private=private)):
                folder = directory.scratch(f"{name}-{number}", part.study)
                metrics.append(_metrics(part, replace(task, study=part.study), folder, progress, name))
            results[name] = metrics[0] if len(metrics) == 1 else _mean(metrics)
        return results


def train_here(
    prepared: Prepared,
    task: Task,
    directory: RunDirectory,
    hospitals: Hospitals,
    *,
    evaluate: Evaluate,
    progress: Progress,
    label: str = "training",
) -> tuple[Agreement, Trained]:
    """Train, or resume training, a model that is only measured and never delivered; also return the agreement."""
    with hospitals.join(prepared, task, directory) as joined:
        trained = train(
            prepared.study,
            joined.agreement,
            task.model,
            joined.transport,
            directory,
            evaluate=evaluate,
            progress=progress,
            label=label,
        )
    return joined.agreement, trained


def _metrics(
    prepared: Prepared, task: Task, directory: RunDirectory, progress: Progress, label: str
) -> dict[str, Any]:
    """Train one alternative and evaluate it."""
    test = TestSet(task)
    _, trained = train_here(
        prepared, task, directory, Simulated(), evaluate=test.point, progress=progress, label=label
    )
    return test.metrics(test.probabilities(trained.parameters), trained.priors)


def _mean(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each plain number over several runs on the same test set."""
    plain = [key for key, value in metrics[0].items() if isinstance(value, float)]
    return {"n": metrics[0]["n"]} | {key: float(np.mean([one[key] for one in metrics])) for key in plain}


def _open_ledgers(stack: ExitStack, agreement: Agreement, directory: RunDirectory) -> dict[str, Ledger]:
    """One ledger per simulated site, whose budget is exactly the study's target; none without privacy."""
    if agreement.trust == "none":
        return {}
    target = agreement.target
    budget = Budget(target.epsilon, target.delta, target.unit)
    return {name: stack.enter_context(Ledger(directory.ledger(name), budget)) for name in agreement.sites}


def _personal(
    sites: Sequence[Site], task: Task, agreement: Agreement, directory: RunDirectory, trained: Trained
) -> dict[str, TrainedModel]:
    """Each site's own model, if the study has them; models already in a resumed run's directory are reused.

    A site that was charged for its own model but stopped before it was on disk has none: making it again would cost
    its share of the budget again.
    """
    made = {}
    common = task.trained(trained.parameters, trained.statistics)
    for site in sites if has_own(agreement) else ():
        folder = directory.personal(site.name)
        if not (folder / "model.json").exists():
            try:
                own = own_model(site, agreement, common)
            except BudgetExceeded:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            own.save(folder)
        made[site.name] = TrainedModel.load(folder)
    return made


def _sites(
    prepared: Prepared,
    task: Task,
    agreement: Agreement,
    ledgers: Mapping[str, Ledger],
    made: Mapping[str, type[Site]],
) -> list[Site]:
    """Sites that have admitted the agreement, and know each other's keys."""
    learners = {name: task.learner(rows) for name, rows in prepared.sites.items()}
    held_out = {name: task.held_out(prepared.held_out.get(name, NOTHING)) for name in prepared.sites}
    tested = [one.units for one in held_out.values() if one is not None]
    most = max([one.units for one in learners.values()] + tested)  # known to the simulating process
    policy = Policy(trusts=frozenset({agreement.trust}), max_units=most)
    keys = {name: Ed25519PrivateKey.generate() for name in agreement.sites}
    pinned = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    sites = [
        made.get(name, Site)(
            name,
            learner,
            policy,
            ledgers.get(name),
            Identity(keys[name], pinned),
            held_out=held_out[name],
        )
        for name, learner in learners.items()
    ]
    for site in sites:
        site.admit(agreement)
    return sites
