"""Inspecting data before a study uses it: check, fetch, split."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.columns import Columns, Preset, read_columns
from fedveil.cli.output.console import console, speak_plainly

if TYPE_CHECKING:
    from fedveil.data import Scheme, Settings

__all__ = ["app"]

app = typer.Typer(help="Check, fetch and split images.", no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[
    str,
    typer.Argument(
        help="A manifest .csv, .tsv, .parquet or .xlsx, a folder, an .npz file, "
        '"medmnist:NAME", "phantom", or a study .toml.'
    ),
]
Positive = Annotated[
    list[str] | None, typer.Option("--positive", help="A class of the positive group; may be repeated.")
]
Overlap = Annotated[
    bool,
    typer.Option("--allow-patient-overlap", help="Accept a patient in two sites, or in training and test."),
]


@app.command("check")
def check_command(
    source: Source,
    positive: Positive = None,
    allow_patient_overlap: Overlap = False,
    column: Columns = None,
    preset: Preset = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Describe a source and list every problem in it, by file and line; exit code 2 if there is any.

    A study file is checked with the settings in its [data] table.

    Example: fedveil data check scans/manifest.csv
    """
    from fedveil.data import check

    settings: Settings
    with speak_plainly():
        if source.endswith(".toml"):
            from fedveil.study import Study, resolve

            study = resolve(Study.load(Path(source)), Path(source).parent)
            source, settings = study.data.source, study.data.settings
        else:
            settings = {"columns": read_columns(column), "allow_patient_overlap": allow_patient_overlap}
            settings["preset"] = preset
        if positive:
            settings["positive"] = positive
        report = check(source, **settings)
        if as_json:
            print(json.dumps(report.to_dict(), indent=2))
        else:
            console.print(str(report), soft_wrap=True, markup=False)
        if not report.ok:
            raise SystemExit(2)


@app.command("fetch")
def fetch_command(
    name: Annotated[
        str, typer.Argument(help="A MedMNIST set, such as breastmnist, pneumoniamnist or dermamnist.")
    ],
    size: Annotated[int, typer.Option(help="Pixels along each side: 28, 64, 128 or 224.")] = 28,
) -> None:
    """Download a MedMNIST set and check it against its official MD5.

    Example: fedveil data fetch breastmnist
    """
    from fedveil.data import fetch

    with speak_plainly():
        console.print(f"{fetch(name, size)}", soft_wrap=True, markup=False)


@app.command()
def split(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="A new folder for one manifest per hospital.")],
    count: Annotated[int, typer.Option(help="Number of hospitals.")] = 5,
    scheme: Annotated[str, typer.Option(help="iid, dirichlet or quantity.")] = "dirichlet",
    alpha: Annotated[float, typer.Option(help="Smaller is more skewed.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    positive: Positive = None,
) -> None:
    """Split a source's patients among simulated hospitals, one manifest each.

    Example: fedveil data split scans/manifest.csv hospitals --count 3
    """
    from fedveil.data import load, write_split

    with speak_plainly():
        dataset = load(source, positive=positive or None, seed=seed)
        written = write_split(dataset, folder, count, _scheme(scheme), alpha, seed)
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, markup=False)


def _scheme(name: str) -> "Scheme":
    """The library checks it and names the rule and the remedy."""
    return name  # type: ignore[return-value]
