"""One study at many settings: what each level of privacy costs in accuracy, and what federation gains over training
alone.

Every setting is a whole federated training run, with the same sites, ledgers and rounds as `fedveil run`. On public
or simulated data the ledgers are deleted afterwards; for real hospitals' patients see `fedveil.sweeps.budget`.
Features are extracted once and stored in the feature cache; then settings run side by side, one thread each.
``results.jsonl`` gets one synced line per finished setting, so a sweep that is killed loses only unfinished settings.
"""

import csv
import hashlib
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data import Dataset, hospitals
from fedveil.errors import InvalidValue, StudyError
from fedveil.io import json_line, write_atomic
from fedveil.parallel import cores
from fedveil.privacy import Ledger, operational_risk
from fedveil.study.arrangement import arranged
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task, make_task
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.progress import Progress, Silent
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.runner import Hospitals
from fedveil.study.settings.schema import Study
from fedveil.study.simulation import Simulated, train_here
from fedveil.study.steps import signal_to_noise
from fedveil.sweeps.backends import Backend, in_processes, memory, on_backend, reach
from fedveil.sweeps.budget import Work, plan_payment
from fedveil.sweeps.grid import Grid, Measurement, Setting

__all__ = ["measure", "read_measurements", "sweep"]

RESULTS = "results.jsonl"
SAMPLE_STREAM = 0x5ACE
"""Distinct from the streams that split patients into hospitals and test sets."""


def sweep(
    directory: Path,
    study: Study,
    grid: Grid,
    *,
    resume: bool = False,
    workers: int | None = None,
    backend: str | None = None,
    pay: float | None = None,
    progress: Progress | None = None,
    dataset: Dataset | None = None,
) -> list[Measurement]:
    """Measure every setting of a grid, store the results in ``directory``, and return them in the grid's order.

    Args:
        directory: a new one; with ``resume``, that of the same study's sweep, whose grid may have grown.
        study: the resolved study; the grid overrides what it sweeps.
        grid: the settings. resume: continue the sweep in ``directory``.
        workers: processes; default one per core. 1 works in this process. A sweep with ``pay`` has one.
        backend: of joblib, see `reach`; by default processes of this machine.
        pay: where the data names real hospitals, the epsilon that all models together may cost each one's patients;
            by default, on resuming, the earlier value.
        progress: told of every finished setting.
        dataset: data in memory, for which the sweep uses one process; by default the study's source is read.

    Raises:
        InvalidValue: `workers` is below 1, or the backend cannot be used; nothing was written.
        StudyError: the directory is in use, the data names real hospitals and ``pay`` is missing or too small, or a
            backend is named for data in memory.
    """
    listener = progress or Silent()
    if workers is not None and workers < 1:
        raise InvalidValue(
            f"the number of workers is {workers}", "a sweep needs at least 1", "leave it out for one per core"
        )
    data = prepare(study, dataset)
    if dataset is not None:
        _check_backend(backend)
        workers = 1
    payment = plan_payment(data, grid, pay, directory)
    settings = list(payment.settings) if payment else grid.settings()
    if payment:
        _check_workers(workers, backend)
    if payment and not resume:
        payment.check(directory, settings)
    reached = None if backend is None else reach(backend, workers)
    _open(directory, study, resume)
    with RunDirectory(directory):
        done = {one.setting: one for one in _cut(directory / RESULTS)}
        left = [setting for setting in settings if setting not in done]
        if payment:
            payment.check(directory, left)
        task = make_task(data.study, data.dataset, listener)
        listener.stage("settings", len(settings), len(settings) - len(left))
        found = _measured(task, left, workers, reached)
        if payment:
            found = payment.measure(directory, left, _paid_work(_Tasks(task)))
        for measurement in _kept(found, directory / RESULTS):
            done[measurement.setting] = measurement
            listener.advance(note=_note(measurement))
    results = [done[setting] for setting in settings]
    text = table(results)
    write_atomic(directory / "results.csv", lambda out: out.write(text.encode()))
    return results


def _kept(found: Iterable[Measurement], path: Path) -> Iterator[Measurement]:
    """Each measurement, after it was written to disk."""
    with path.open("a", encoding="utf-8") as file:
        for measurement in found:
            file.write(json_line(measurement.to_dict()))
            file.flush()
            os.fsync(file.fileno())
            yield measurement


def measure(
    task: Task, settings: Sequence[Setting], *, workers: int | None = None, backend: str | None = None
) -> Iterator[Measurement]:
    """Train and evaluate each setting, in a reproducible shuffled order, so that the remaining time can be estimated
    early.

    Args:
        task: the study's pipeline with its features, which other processes take from the feature cache.
        settings: what to measure.
        workers: processes; default one per core. 1 works in this process.
        backend: of joblib, see `reach`. Its workers read the data, and the feature cache if they share it.
    """
    yield from _measured(task, settings, workers, None if backend is None else reach(backend, workers))


def _measured(
    task: Task, settings: Sequence[Setting], workers: int | None, backend: Backend | None
) -> Iterator[Measurement]:
    mixed = sorted(settings, key=lambda s: hashlib.sha256(repr(s).encode()).digest())
    count = min(workers or cores(), len(mixed))
    tasks = _Tasks(task)
    for setting in mixed:
        tasks.at(setting)  # the features that each method needs are in the cache before workers read them
    if backend is not None:
        yield from on_backend(partial(_measure_anywhere, task.study.to_toml()), mixed, backend)
        return
    with tempfile.TemporaryDirectory(prefix="fedveil-sweep-", dir=memory()) as folder:
        scratch = Path(folder)
        if count <= 1:
            for setting in mixed:
                yield _measure(tasks.at(setting), setting, scratch)
            return
        work = partial(_measure_anywhere, task.study.to_toml(), scratch=scratch)
        yield from in_processes(work, mixed, count, scratch)


def read_measurements(path: Path) -> list[Measurement]:
    """The finished settings of a sweep's directory or results file; an incomplete last line is left out."""
    file = path / RESULTS if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise StudyError(
            f"{file} cannot be read", "it must hold a sweep's results", "make them with `fedveil sweep`"
        ) from None
    found = []
    for line in lines:
        try:
            found.append(Measurement.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            break
    return found


def table(results: Iterable[Measurement]) -> str:
    """The results as CSV, one row per setting; infinite epsilon and alpha are written as words."""
    text = io.StringIO()
    writer: Any = None
    for one in results:
        values = one.to_dict()
        row = values.pop("setting") | {
            "training_" + k if k == "patients" else k: v for k, v in values.items()
        }
        row["epsilon"] = "none" if row["epsilon"] is None else row["epsilon"]
        row["alpha"] = "iid" if row["alpha"] is None else row["alpha"]
        row["patients"] = "all" if row["patients"] is None else row["patients"]
        if writer is None:
            writer = csv.DictWriter(text, row.keys(), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return text.getvalue()


def _check_backend(backend: str | None) -> None:
    if backend is not None:
        raise StudyError(
            f"the sweep's backend is {backend[:80]!r}, and its images are in memory",
            "workers elsewhere read the study's data themselves",
            "name a source that they can read in the study, or leave out the backend",
        )


def _check_workers(workers: int | None, backend: str | None) -> None:
    if (workers is not None and workers > 1) or backend is not None:
        raise StudyError(
            f"{backend or workers} processes are asked for, and --pay is given",
            "one process charges a hospital's ledger at a time",
            "drop --workers and --backend",
        )


def _open(directory: Path, study: Study, resume: bool) -> None:
    if resume:
        if not (directory / "study.toml").is_file():
            raise StudyError(
                f"{directory} holds no sweep",
                "only a sweep that was started can be resumed",
                "check the path",
            )
        if RunDirectory(directory).study() != study:
            raise StudyError(
                f"{directory} was started with another study",
                "a resumed sweep must have the same study; its lists may grow",
                f"use {directory / 'study.toml'}, or start again in another directory",
            )
        return
    if directory.exists():
        raise StudyError(
            f"{directory} exists",
            "a sweep never overwrites files",
            "continue with --resume, or choose another --out",
        )
    directory.mkdir(parents=True)
    write_atomic(directory / "study.toml", lambda file: file.write(study.to_toml().encode()))


def _cut(path: Path) -> list[Measurement]:
    """The finished measurements; an incomplete last line is removed from the file."""
    if not path.exists():
        return []
    found = read_measurements(path)
    text = "".join(json_line(one.to_dict()) for one in found)
    write_atomic(path, lambda file: file.write(text.encode()))
    return found


class _Tasks:
    """A study's pipeline by swept method: methods differ in the head and in the views that they need."""

    def __init__(self, task: Task) -> None:
        self._study = task.study
        self._by = {task.study.training.method: task}

    def at(self, setting: Setting) -> Task:
        """The pipeline of the study at this setting."""
        study, method = setting.study(self._study), setting.method
        if method not in self._by:
            self._by[method] = make_task(study, self._by[self._study.training.method].dataset, Silent())
        return replace(self._by[method], study=study)


def _measure(task: Task, setting: Setting, scratch: Path) -> Measurement:
    """One setting on simulated hospitals, with ledgers in ``scratch``."""
    sites = _deal(task.dataset, task.study, setting)
    data = Prepared(study=task.study, dataset=task.dataset, sites=sites, simulated=True)
    found = []
    for part in arranged(data, setting.arrangement, private=setting.trust != "none"):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            directory = RunDirectory.create(Path(folder) / "run", part.study)
            found.append(
                _train(part, replace(task, study=part.study), setting, directory, hospitals=Simulated())
            )
    return found[0] if len(found) == 1 else _together(found)


def _paid_work(tasks: "_Tasks") -> Work:
    """One setting at the hospitals that the data names, charged to their ledgers."""

    def work(
        data: Prepared, setting: Setting, directory: RunDirectory, ledgers: Mapping[str, Ledger]
    ) -> Measurement:
        task = replace(tasks.at(setting), study=data.study)
        return _train(data, task, setting, directory, hospitals=Simulated(ledgers))

    return work


def _train(
    data: Prepared, task: Task, setting: Setting, directory: RunDirectory, *, hospitals: Hospitals
) -> Measurement:
    """One training run, evaluated."""
    started = time.process_time()
    agreement, trained = train_here(
        data, task, directory, hospitals, evaluate=lambda _parameters, _statistics: None, progress=Silent()
    )
    point = TestSet(task).point(trained.parameters, trained.priors) or {}
    private = agreement.trust != "none"
    released = agreement.mechanisms if private else ()
    spent = agreement.price(released)
    risk = operational_risk(replace(agreement.target, epsilon=spent), released)
    units = sum(data.units.values())
    return Measurement(
        setting=setting,
        units=units,
        patients=sum(data.patients.values()),
        ratio=signal_to_noise(agreement, units),
        epsilon_spent=spent,
        true_positive_rate=risk.true_positive_rate,
        advantage=risk.advantage,
        auroc=point["auroc"],
        balanced_accuracy=point["balanced_accuracy"],
        seconds=time.process_time() - started,
    )


def _together(found: Sequence[Measurement]) -> Measurement:
    """Hospitals that each trained alone: mean accuracy, and the largest epsilon of any patient."""

    def mean(name: str) -> float:
        return math.fsum(getattr(one, name) for one in found) / len(found)

    return Measurement(
        setting=found[0].setting,
        units=sum(one.units for one in found),
        patients=sum(one.patients for one in found),
        ratio=mean("ratio"),
        epsilon_spent=max(one.epsilon_spent for one in found),
        true_positive_rate=max(one.true_positive_rate for one in found),
        advantage=max(one.advantage for one in found),
        auroc=mean("auroc"),
        balanced_accuracy=mean("balanced_accuracy"),
        seconds=math.fsum(one.seconds for one in found),
    )


def _deal(dataset: Dataset, study: Study, setting: Setting) -> dict[str, npt.NDArray[np.int64]]:
    """Training images of each simulated hospital; of a random subset of patients, if the setting asks for fewer."""
    seed = study.study.seed + setting.seed
    kept = np.arange(len(dataset))
    patients = np.unique(dataset.patients[dataset.train])
    if setting.patients is not None and setting.patients < len(patients):
        generator = np.random.default_rng([seed, SAMPLE_STREAM])
        chosen = generator.choice(patients, setting.patients, replace=False)
        kept = dataset.train[np.isin(dataset.patients[dataset.train], chosen)]
    where = study.data.sites
    dealt = hospitals(dataset.subset(kept), where.count, where.scheme, where.alpha, seed)
    return {f"site-{number}": kept[rows] for number, rows in enumerate(dealt, 1)}


def _note(measurement: Measurement) -> str:
    return f"AUROC {measurement.auroc:.3f}"


@lru_cache(maxsize=1)
def _tasks_of(study: str) -> _Tasks:
    """In a worker: the pipeline of a resolved study, prepared once."""
    resolved = Study.parse(study)
    return _Tasks(make_task(resolved, prepare(resolved).dataset, Silent()))


def _measure_anywhere(study: str, setting: Setting, scratch: Path | None = None) -> Measurement:
    """`_measure` in a worker, which has the study's text and reads its data."""
    with tempfile.TemporaryDirectory(prefix="fedveil-sweep-", dir=scratch or memory()) as folder:
        return _measure(_tasks_of(study).at(setting), setting, Path(folder))
