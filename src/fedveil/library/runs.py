"""Studies from a program: `run`, `plan`, `sweep` and `load`, by the same path as the verbs of the command line."""

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

from fedveil.data import MEMORY, Dataset, Embeddings
from fedveil.errors import FedveilError, StudyError
from fedveil.library.display import run_html
from fedveil.planning import Plan, make_plan
from fedveil.privacy import Guarantee, Trust, Unit
from fedveil.report import RunRecord, write_report
from fedveil.report import load as load_record
from fedveil.study import Method, Progress, RunDirectory, Study, TrainedModel, resolve
from fedveil.study import run as run_directory
from fedveil.study.results.schema import ModelMetrics
from fedveil.study.settings.defaults import FINDINGS_DEFAULTS
from fedveil.study.simulation import Simulated
from fedveil.sweeps import EVEN, Grid, Measurement
from fedveil.sweeps import sweep as sweep_directory

__all__ = ["AnyPath", "Run", "Source", "load", "plan", "resolved_study", "run", "sweep"]

AnyPath: TypeAlias = str | PathLike[str]
Source: TypeAlias = Dataset | AnyPath | None
READING = (
    *("positive", "test_fraction", "allow_patient_overlap"),
    *("separator", "unknown_labels", "preset", "columns", "layout", "accept"),
)
"""Settings of a study that a data set in memory was read by already."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its model, how good it is, what it guarantees, and the directory that holds all of it.

    Attributes:
        directory: as `fedveil run` writes it.
        record: everything in it, as values.
    """

    directory: Path
    record: RunRecord = field(repr=False)

    @property
    def guarantee(self) -> Guarantee:
        """What the charges earn: epsilon, delta, unit, trust. Without privacy epsilon is infinite."""
        if self.record.guarantee is not None:
            return self.record.guarantee
        privacy = self.study.privacy
        return Guarantee(math.inf, privacy.delta, privacy.unit, "none")

    @property
    def metrics(self) -> ModelMetrics:
        """Accuracy on the test images; where there are none, as noisy histograms of held-out patients tell it.

        Raises:
            StudyError: the study was not evaluated.
        """
        found = self.record.test or self.record.released
        if found is None:
            raise StudyError(
                f"{self.directory} holds no metrics",
                "the study had no test images and released no evaluation",
                "judge the model on images of your own with run.model.predict",
            )
        return found

    @cached_property
    def model(self) -> TrainedModel:
        """The trained model; its `predict` takes images as `Dataset.from_arrays` does."""
        return TrainedModel.load(self.directory)

    @cached_property
    def study(self) -> Study:
        """The resolved study."""
        return RunDirectory(self.directory).study()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know beside the numbers."""
        return self.record.notes

    def report(self) -> Path:
        """Write ``report.html`` into the directory, and return its path."""
        return write_report(self.directory)

    def _repr_html_(self) -> str:
        """What a notebook shows: guarantee, accuracy, notes and figures."""
        return run_html(self.record)


def run(
    study: Study | AnyPath | None = None,
    data: Source = None,
    *,
    directory: AnyPath | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a study's model under its guarantee, at hospitals that are simulated in this process.

    Args:
        study: a study or its file; default one with every default.
        data: a data set, or a source as in a study file; default the study's own.
        directory: where the run is kept, new or with ``resume`` one that was interrupted. By default a temporary one,
            which lasts as long as the returned object. It holds the ledgers: name one for patients who are to be
            charged for more than this run.
        resume: go on with an interrupted run.
        progress: told of stages and rounds.

    Raises:
        DataError, InvalidValue, StudyError: the data or the settings cannot be used; nothing was charged.
        FederationError: too few sites were left; the run can be resumed.
    """
    resolved, dataset = resolved_study(study, data)
    temporary = None if directory is not None else Path(tempfile.mkdtemp(prefix="fedveil-run-"))
    path = temporary / "run" if temporary else Path(cast(AnyPath, directory))
    try:
        kept = RunDirectory.reopen(path, resolved) if resume else RunDirectory.create(path, resolved)
        try:
            run_directory(kept, Simulated(dataset=dataset), progress=progress)
        except (FedveilError, OSError):
            if not resume:
                kept.discard_unstarted()
            raise
        write_report(path)
        found = load(path)
    except BaseException:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if temporary:
        weakref.finalize(found, shutil.rmtree, temporary, ignore_errors=True)
    return found


def load(directory: AnyPath) -> Run:
    """Open a finished run.

    Raises:
        StudyError: it is no run directory, is not complete, or is damaged.
    """
    return Run(Path(directory), load_record(Path(directory)))


def plan(study: Study | AnyPath | None = None, data: Source = None) -> Plan:
    """Say what a study would cost; nothing is trained, nothing is charged. See `run` for the arguments."""
    resolved, dataset = resolved_study(study, data)
    return make_plan(resolved, dataset)


def sweep(
    study: Study | AnyPath | None = None,
    data: Source = None,
    *,
    epsilon: Iterable[float],
    trust: Iterable[Trust] | None = None,
    unit: Iterable[Unit] | None = None,
    method: Iterable[Method] | None = None,
    seeds: int = 1,
    directory: AnyPath | None = None,
    pay: float | None = None,
    workers: int | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure what privacy costs in accuracy: one training for every combination of settings.

    On real hospitals' patients every one of them is a release, and has to be paid for.

    Args:
        study: as for `run`; its own value stands for each list that is left out.
        data: as for `run`.
        epsilon: values; infinite for no privacy.
        trust: levels of trust.
        unit: protected units.
        method: how models are trained.
        seeds: repeats of every setting.
        directory: a new directory to keep the results in; by default they are only returned.
        pay: the epsilon that all models together may cost the patients of real hospitals.
        workers: processes; default one for each core, and one where data is in memory.
        backend: of joblib, such as "dask:ADDRESS"; by default processes of this machine.
        progress: told of every finished setting.
    """
    resolved, dataset = resolved_study(study, data)
    sites = resolved.data.sites
    grid = Grid(
        epsilon=tuple(map(float, epsilon)),
        trust=_values(trust, resolved.privacy.trust),
        unit=_values(unit, resolved.privacy.unit),
        sites=(sites.count,),
        alpha=(EVEN if sites.scheme == "iid" else sites.alpha,),
        method=_values(method, resolved.training.method),
        seeds=seeds,
    )

    def into(path: Path) -> list[Measurement]:
        return sweep_directory(
            path,
            resolved,
            grid,
            workers=workers,
            backend=backend,
            pay=pay,
            progress=progress,
            dataset=dataset,
        )

    if directory is not None:
        return into(Path(directory))
    with tempfile.TemporaryDirectory(prefix="fedveil-sweep-") as folder:
        return into(Path(folder) / "sweep")


def _values(given: Iterable[Any] | None, own: Any) -> tuple[Any, ...]:
    return (own,) if given is None else tuple(given)


def resolved_study(study: Study | AnyPath | None, data: Source) -> tuple[Study, Dataset | None]:
    """The study with its data's source, and the data where it is in memory."""
    if study is None or isinstance(study, Study):
        found = resolve(study or Study(), Path())
    else:
        found = resolve(Study.load(Path(study)), Path(study).parent)
    if data is None:
        return found, None
    if not isinstance(data, Dataset):
        return resolve(found.with_changes({"data": {"source": str(data)}}), Path()), None
    _check_reading(found)
    read = data.images.reading
    own = {name: getattr(read, name) for name in ("window", "max_megapixels", "slices", "axis")}
    left = {key: value for key, value in own.items() if key not in found.data.model_fields_set}
    changes: dict[str, dict[str, object]] = {"data": {"source": MEMORY, **left}}
    if data.task == "findings" and "statistics_share" not in found.privacy.model_fields_set:
        changes["privacy"] = FINDINGS_DEFAULTS
    if isinstance(data.images, Embeddings) and "features" not in found.model.model_fields_set:
        changes["model"] = {"features": "precomputed"}
    return found.with_changes(changes), data


def _check_reading(study: Study) -> None:
    """Refuse settings that would be ignored: the data set has been put together without them."""
    usual = Study().data
    for key in READING:
        value = getattr(study.data, key)
        if value != getattr(usual, key):
            raise StudyError(
                f"the study sets data.{key} to {value!r}, and the data is in memory",
                "such data was put together before the study saw it",
                f"give {key} to Dataset.from_arrays, and leave it out of the study",
            )
