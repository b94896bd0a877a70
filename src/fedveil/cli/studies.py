"""The commands for a study: init, plan, run, demo, predict, report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.columns import Columns, Preset, read_columns
from fedveil.cli.encoders.device import DeviceName, on_device
from fedveil.cli.output.console import console, errors, speak_plainly
from fedveil.cli.output.progress import Bars
from fedveil.cli.output.tables import print_result
from fedveil.cli.study_file import AsJson, Data, Epsilon, StudyFile, Trust, read_study
from fedveil.errors import FedveilError, StudyError
from fedveil.io import write_atomic

if TYPE_CHECKING:
    from fedveil.study import Study

__all__ = ["demo", "init", "predict_command", "report", "run_command"]

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/NAME.")]


def init(
    path: Annotated[Path, typer.Argument(help="Where to write the study file.")] = Path("study.toml"),
    data: Annotated[
        str, typer.Option(help="Data source, such as scans/manifest.csv or medmnist:breastmnist.")
    ] = "phantom",
) -> None:
    """Write a study file with every setting explained.

    Example: fedveil init study.toml --data scans/manifest.csv
    """
    from fedveil.study.settings.template import study_template

    with speak_plainly():
        if path.exists():
            raise StudyError(
                f"{path} exists", "init never overwrites a file", "choose another name, or delete it"
            )
        text = study_template({"study.name": path.stem, "data.source": data})
        write_atomic(path, lambda file: file.write(text.encode()))
        console.print(f"wrote {path}; see what it would cost with: fedveil plan {path}", markup=False)


def run_command(
    study: StudyFile = Path("study.toml"),
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    data: Data = None,
    epsilon: Epsilon = None,
    trust: Trust = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also train the alternatives for comparison.")
    ] = False,
    device: DeviceName = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a study's model under its guarantee and write a report.

    Example: fedveil run study.toml --out runs/first
    """
    with speak_plainly(), on_device(device):
        resolved = read_study(study, data, epsilon, trust, baselines)
        _run(resolved, out or Path("runs") / resolved.study.name.replace(" ", "-"), resume, as_json)


def demo(
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Run a whole study on the built-in synthetic images: five hospitals, epsilon 1 per patient.

    Example: fedveil demo
    """
    from fedveil.study import Study

    with speak_plainly():
        folder = out or _fresh(Path("runs") / "demo")
        _run(Study.parse('[study]\nname = "demo"'), folder, False, as_json)


def predict_command(
    model: Annotated[Path, typer.Argument(help="A run directory, or the folder of a model.json.")],
    images: Annotated[str, typer.Argument(help="A folder of images or a manifest.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV file to write; default standard output.")
    ] = None,
    column: Columns = None,
    preset: Preset = "",
    device: DeviceName = "cpu",
) -> None:
    """Classify images with a trained model. Unreadable images are listed, and the exit code is then 2.

    Example: fedveil predict runs/first new-scans/ --out predictions.csv
    """
    from fedveil.study import predict

    with speak_plainly(), on_device(device):
        if out is not None and out.exists():
            raise StudyError(
                f"{out} exists", "predict never overwrites a file", "choose another name, or delete it"
            )
        found = predict(model, images, columns=read_columns(column), preset=preset)
        if out is None:
            print(found.csv, end="")
        else:
            write_atomic(out, lambda file: file.write(found.csv.encode()))
            console.print(f"wrote {out}", markup=False)
        for problem in found.problems:
            errors.print(f"not classified: {problem}", soft_wrap=True, markup=False)
        if found.problems:
            raise SystemExit(2)


def report(
    directory: Annotated[Path, typer.Argument(help="A finished run directory.")],
) -> None:
    """Write the report of a finished run again.

    Example: fedveil report runs/first
    """
    from fedveil.report import write_report

    with speak_plainly():
        console.print(f"wrote {write_report(directory)}", markup=False)


def _fresh(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _run(study: "Study", folder: Path, resume: bool, as_json: bool) -> None:
    from fedveil.report import write_report
    from fedveil.study import RunDirectory, run

    directory = RunDirectory.reopen(folder, study) if resume else RunDirectory.create(folder, study)
    try:
        with Bars(quiet=as_json) as bars:
            result = run(directory, progress=bars)
    except (FedveilError, OSError):
        if not resume:
            directory.discard_unstarted()
        raise
    page = write_report(directory.path)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print_result(result)
        errors.print(f"\nreport: {page}")
