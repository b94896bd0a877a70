"""One audit, from a study to ``audit.json``: the attackers, one significance for all of them, and a verdict."""

import hashlib
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

import numpy as np

from fedveil.audit.arena import embedded
from fedveil.audit.attacker import STUDY, Attacker, Attempt, Setup, Trials, claim_of
from fedveil.audit.black_box import ReleasedModel
from fedveil.audit.one_run import ManyCanaries
from fedveil.audit.result import FILE, SCHEMA, AuditResult, Finding, write_audit
from fedveil.audit.white_box import NoisySums, WholeProtocol
from fedveil.data import Dataset
from fedveil.errors import InvalidValue, StudyError
from fedveil.federation import Agreement
from fedveil.installed import code_hash
from fedveil.study import Hospitals, Prepared, Progress, Silent, Study, make_agreement
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare

__all__ = ["ATTACKERS", "Effort", "audit"]

ATTACKERS: dict[str, Attacker] = {
    one.name: one for one in (NoisySums(), WholeProtocol(), ManyCanaries(), ReleasedModel())
}
TRIALS = "audit-trials"
PUBLIC = ("phantom", "medmnist:")
"""Sources whose images show nobody, or were published."""
SERVICES = (
    "The rounds ran over the network between {count} site services and a coordinator on this machine, each with the "
    "features that the encoder computed in place of images. No site colluded with the attacker."
)
RATES = tuple(float(rate) for rate in np.concatenate([np.geomspace(1e-4, 0.1, 30), np.linspace(0.12, 1, 45)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much an audit attacks.

    Attributes:
        confidence: with which all lower bounds of the audit hold together.
        attackers: their names; all by default.
        trials: executions of each world by the white-box attacker; by default as many as take some seconds.
        sessions: worlds of each kind whose rounds run through the whole protocol.
        canaries: patients of the one run.
        references: models that the black-box attacker trains.
    """

    confidence: float = 0.95
    attackers: tuple[str, ...] = tuple(ATTACKERS)
    trials: int | None = None
    sessions: int = 4
    canaries: int = 400
    references: int = 6

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise InvalidValue(
                f"confidence is {self.confidence:g}",
                "it must lie in [0.5, 1)",
                "0.95 is usual, 0.99 is strict",
            )
        for name in ("trials", "sessions", "canaries", "references"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidValue(
                    f"{name} is {value}", "it must be at least 1", "leave it out for the default"
                )
        unknown = [one for one in self.attackers if one not in ATTACKERS]
        if unknown or not self.attackers:
            raise InvalidValue(
                f"attackers are {', '.join(unknown) or 'none'}",
                f"they must be among {', '.join(ATTACKERS)}",
                "leave them out for all",
            )


def audit(
    study: Study,
    folder: Path,
    *,
    dataset: Dataset | None = None,
    own_images: bool = False,
    effort: Effort | None = None,
    progress: Progress | None = None,
    hospitals: Hospitals | None = None,
) -> AuditResult:
    """Attack a study's own code on synthetic or public patients; write ``audit.json`` into the folder.

    Finished trials are kept in the folder until the audit is complete: an interrupted audit goes on where it was.

    Args:
        study: with its data's source as an absolute path.
        folder: new, or a run directory, or that of an interrupted audit.
        dataset: data in memory instead of the study's source; it counts as the hospital's own unless it is synthetic.
        own_images: attack on the study's own images, in this process. The result is then as confidential as they are.
        effort: how much to attack.
        progress: told of finished pieces of work.
        hospitals: who trains in the one run, such as running services; simulated ones by default. Only that attacker
            can attack others.

    Raises:
        InvalidValue: there are too few trials or canaries for the confidence; the message says how many it takes.
        DataError, StudyError: the data or the settings cannot be used, labels are findings, or an interrupted audit
            is of a `module:` network.
    """
    if (folder / FILE).exists():
        raise StudyError(
            f"{folder} holds a finished audit",
            "an audit never overwrites one",
            "choose another --out, or delete its audit.json",
        )
    if study.privacy.unit == "site":
        raise StudyError(
            "privacy.unit is site",
            "attacks add one patient or one image, and what a whole hospital may change is more than that",
            'audit the study with unit "patient" or "image"',
        )
    if (study.data.meaning if dataset is None else dataset.task) == "findings":
        raise StudyError(
            "the study's labels are findings",
            "attacks add patients of one class each",
            "audit a study of the same settings with classes or grades",
        )
    if study.model.network.startswith("module:") and (folder / TRIALS).exists():
        raise StudyError(
            f"{folder} holds an interrupted audit of {study.model.network}",
            "whether its function is still the same cannot be told, so that finished trials may be of another network",
            f"choose another --out, or delete {folder / TRIALS}",
        )
    started, effort, progress = time.perf_counter(), effort or Effort(), progress or Silent()
    _check_attackers(hospitals, effort)
    setup, notes = _setup(study, folder, dataset, own_images, effort, progress, hospitals)
    attempts = []
    for name in effort.attackers:
        progress.stage(name, _pieces(name, setup.agreement, effort))
        attempts += ATTACKERS[name].attack(setup)
    result = _result(
        setup, attempts, [*notes, *_left_out(setup.agreement, effort)], time.perf_counter() - started
    )
    write_audit(folder, result)
    shutil.rmtree(folder / TRIALS)
    return result


def _check_attackers(hospitals: Hospitals | None, effort: Effort) -> None:
    if hospitals is not None and effort.attackers != (ManyCanaries.name,):
        raise InvalidValue(
            f"attackers are {', '.join(effort.attackers)}",
            f"only the attacker {ManyCanaries.name!r} attacks running services: the others repeat single rounds",
            f'give --only "{ManyCanaries.name}", or leave out --services',
        )


def _setup(
    study: Study,
    folder: Path,
    dataset: Dataset | None,
    own_images: bool,
    effort: Effort,
    progress: Progress,
    hospitals: Hospitals | None,
) -> tuple[Setup, list[str]]:
    """The study under attack, and notes on its patients."""
    used, dataset, notes = _patients(study, dataset, own_images)
    prepared = prepare(used, dataset)
    task = make_task(prepared.study, prepared.dataset, progress)
    if hospitals is not None:
        prepared = embedded(prepared, task)
        task = make_task(prepared.study, prepared.dataset, progress)
        notes.append(SERVICES.format(count=len(prepared.sites)))
    agreement = make_agreement(prepared.study, sites=tuple(prepared.sites), model=task.model)
    setup = Setup(
        prepared=prepared,
        task=task,
        agreement=agreement,
        confidence=effort.confidence,
        attempts=sum(ATTACKERS[name].most(agreement) for name in effort.attackers),
        trials=effort.trials,
        sessions=effort.sessions,
        canaries=effort.canaries,
        references=effort.references,
        store=Trials(
            folder / TRIALS, _about(agreement, prepared, effort) | {"services": hospitals is not None}
        ),
        progress=progress,
        hospitals=hospitals,
    )
    return setup, notes


def _patients(
    study: Study, dataset: Dataset | None, own_images: bool
) -> tuple[Study, Dataset | None, list[str]]:
    """The study on patients that may be attacked without a charge, and notes on them."""
    confidential = (
        "The attacks were made on the study's own images, on this machine; nothing left it. This result was computed "
        "from them without noise: it is as confidential as the images."
    )
    public = dataset.synthetic if dataset is not None else study.data.source.startswith(PUBLIC)
    if own_images and not public:
        return study, dataset, [confidential]
    if public:
        return study, dataset, []
    stands_in = study.model_copy(
        update={
            "data": type(study.data)(
                source="phantom", image_size=study.data.image_size, sites=study.data.sites
            )
        }
    )
    if study.model.features == "precomputed":
        raise StudyError(
            "the study's features are precomputed",
            "synthetic patients have no embeddings from that encoder",
            "audit on the study's own data with --own-images, where nothing leaves",
        )
    return (
        stands_in,
        None,
        [
            "The attacks were made on synthetic patients, not on the study's own: nothing was charged to any ledger."
        ],
    )


def _about(agreement: Agreement, prepared: Prepared, effort: Effort) -> dict[str, object]:
    """What the trials of an audit depend on: the study, its data, the effort, and the code that runs."""
    installed = sorted({(one.name.lower(), one.version) for one in distributions()})
    return {
        "code": code_hash(),
        "python": platform.python_version(),
        "packages": hashlib.sha256(repr(installed).encode()).hexdigest(),
        "agreement": agreement.digest,
        "study": prepared.study.model_dump(mode="json"),
        "data": _content(prepared),
        "trials": effort.trials,
        "sessions": effort.sessions,
        "canaries": effort.canaries,
        "references": effort.references,
        "layout": SCHEMA,
    }


def _content(prepared: Prepared) -> str:
    """Hash of images, labels and patients, and of which hospital trains on and holds out which of them."""
    digest = hashlib.sha256(prepared.dataset.digest().encode())
    for parts in (prepared.sites, prepared.held_out):
        for name, rows in parts.items():
            digest.update(f"|{name}:".encode() + np.asarray(rows, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _pieces(name: str, agreement: Agreement, effort: Effort) -> int:
    """Pieces of work of an attacker, of a calibrated study at its dearest level."""
    released = [one for one in agreement.releases if not one.query.at_site]
    rounds = sum(one.rounds for one in released)
    runs = {ManyCanaries.name: 4 * rounds, ReleasedModel.name: 1 + max(2, effort.references)}
    return runs.get(name, len(released))


def _left_out(agreement: Agreement, effort: Effort) -> list[str]:
    """Notes on what no attacker attacks."""
    notes = []
    stay = [one.query.title for one in agreement.releases if one.query.at_site]
    if stay:
        notes.append(f"Not attacked, since they do not leave a hospital: {', '.join(stay)}.")
    levels = [
        one.query.title for one in agreement.releases if one.level is not None and not one.query.at_site
    ]
    if levels and WholeProtocol.name in effort.attackers:
        notes.append(
            "Not attacked by the protocol attacker, since hospitals answer them only after the pilot: "
            f"{', '.join(levels)} of the level that a calibrated study chooses."
        )
    if agreement.trust == "none":
        notes.append(
            "The study has no privacy: its epsilon is infinite, and there is no statement that an attack could "
            "contradict. Sums leave hospitals as they are; the attacks measure what the model and the rounds reveal."
        )
    return notes


def _result(setup: Setup, attempts: Sequence[Attempt], notes: list[str], seconds: float) -> AuditResult:
    """Bounds that all hold together at the stated confidence (a union bound): the largest of them holds too."""
    agreement, target = setup.agreement, setup.agreement.target
    if len(attempts) > setup.attempts:
        raise AssertionError(f"{len(attempts)} attempts share the significance of {setup.attempts}")
    private, stated = agreement.trust != "none", agreement.price(agreement.mechanisms)
    findings = tuple(_finding(one, setup.significance, private) for one in attempts)
    released = tuple(one.mechanism for one in agreement.releases if not one.query.at_site)
    claim, _ = claim_of(released, target.delta)
    allowed = claim.most_true(np.array(RATES)) if private else np.ones(len(RATES))
    return AuditResult(
        study=agreement.name,
        digest=agreement.digest,
        data=setup.prepared.dataset.name,
        unit=target.unit,
        trust=target.trust,
        epsilon=stated,
        delta=target.delta,
        confidence=setup.confidence,
        findings=findings,
        allowed=tuple(zip(RATES, map(float, allowed), strict=True)),
        verdict=_verdict(findings, setup, private, stated),
        notes=tuple(notes),
        seconds=seconds,
        version=version("fedveil"),
    )


def _finding(attempt: Attempt, significance: float, private: bool) -> Finding:
    claim, plain, evidence = attempt.claim, attempt.plain, attempt.evidence
    false, true = evidence.rates()
    return Finding(
        attacker=attempt.attacker,
        release=attempt.release,
        what=attempt.what,
        epsilon=claim.epsilon() if private else float("inf"),
        lower=claim.epsilon(evidence.leak(claim, significance)),
        lower_plain=plain.epsilon(evidence.leak(plain, significance)),
        contradicted=private and evidence.leak(claim, significance) > 1,
        executions=attempt.executions,
        false_positive_rate=false,
        true_positive_rate=true,
        curve=tuple((float(x), float(y)) for x, y in attempt.curve),
        area=attempt.area,
        covered=attempt.covered,
    )


def _verdict(findings: Sequence[Finding], setup: Setup, private: bool, stated: float) -> str:
    confidence = f"{100 * setup.confidence:g} %"
    found = [one for one in findings if one.contradicted]
    if not private:
        return "No privacy is stated (epsilon is infinite): nothing can be contradicted."
    if found:
        where = "; ".join(f"{one.release}, by the {one.attacker} attacker" for one in found)
        return (
            f"CONTRADICTED at {confidence} confidence: the code leaks more than is stated ({where}). "
            "Do not run this study on patients."
        )
    best = max((one for one in findings if one.release == STUDY), key=lambda one: one.lower, default=None)
    return (
        f"Not contradicted at {confidence} confidence.{_reach(best, stated)} "
        "An audit cannot prove that a guarantee holds."
    )


def _reach(best: Finding | None, stated: float) -> str:
    """What the strongest attack on the study proved, beside the study's own epsilon."""
    if best is None:
        return ""
    if best.lower <= 0:
        return f" No attack on the study proved anything about its stated epsilon of {stated:.3g}."
    return (
        f" The strongest attack ({best.attacker}, on {best.subject}) proves epsilon >= {best.lower:.3g} "
        f"of a stated {stated:.3g}."
    )
