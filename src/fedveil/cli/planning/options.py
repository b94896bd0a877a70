"""The options of `fedveil plan`."""

from pathlib import Path
from typing import Annotated

import typer

from fedveil.study import METRICS

__all__ = [
    "LIKE",
    "Auroc",
    "BalancedAccuracy",
    "Cohorts",
    "Epsilon",
    "Explain",
    "Federation",
    "Fit",
    "Images",
    "Like",
    "Methods",
    "Networks",
    "RankBy",
    "Risk",
    "StudyFile",
    "Tolerance",
    "Trusts",
    "Units",
]

LIKE = "chest-x-rays"
"""The task that accuracy is predicted from, unless another is named."""

StudyFile = Annotated[
    Path | None,
    typer.Argument(help="The study file, default study.toml; optional with --cohorts."),
]
Cohorts = Annotated[
    str | None,
    typer.Option(help="Training patients per hospital, comma-separated: recommend a setting."),
]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Overrides privacy.epsilon; with --cohorts, the largest accepted value."),
]
Trusts = Annotated[
    str | None,
    typer.Option(
        help="Overrides privacy.trust; with --cohorts, all accepted levels; default: the study's and stronger ones."
    ),
]
Auroc = Annotated[float | None, typer.Option(help="With --cohorts: the smallest accepted AUROC.")]
BalancedAccuracy = Annotated[
    float | None, typer.Option(help="With --cohorts: the smallest accepted balanced accuracy.")
]
Risk = Annotated[
    float | None,
    typer.Option(
        help="With --cohorts: largest attack success (true positive rate) at 1 % false alarms, such as 0.02."
    ),
]
RankBy = Annotated[
    str | None,
    typer.Option(
        help=f"With --cohorts: compare settings by {' or '.join(METRICS)}; default: the metric that has a target.",
    ),
]
Units = Annotated[
    str | None,
    typer.Option(help="With --cohorts: the accepted privacy units, of patient (default), site, image."),
]
Images = Annotated[
    float | None, typer.Option(help="With --cohorts: mean number of images per patient, for unit image.")
]
Methods = Annotated[
    str | None,
    typer.Option(help="With --cohorts: accepted methods, of gradient,averaging,one-shot; default all."),
]
Networks = Annotated[
    str | None,
    typer.Option(help="With --cohorts: accepted models, such as linear,cnn; default all known ones."),
]
Like = Annotated[
    str | None, typer.Option(help=f"With --cohorts: the task that yours resembles; default {LIKE}.")
]
Fit = Annotated[
    Path | None,
    typer.Option(help="With --cohorts: directory of your own sweep to predict from, instead of --like."),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="With --cohorts: least epsilon that loses no more accuracy than this; default 0.01 without other wishes."
    ),
]
Federation = Annotated[
    Path | None,
    typer.Option("--federation", help="Price the study for the hospitals of this coordinator's folder."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the arithmetic.")]
