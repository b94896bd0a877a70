"""The options of `fedveil plan`, apart from what it does with them."""

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
    "Fit",
    "Images",
    "Like",
    "Methods",
    "Networks",
    "RankBy",
    "Risk",
    "StudyFile",
    "Trusts",
    "Units",
]

LIKE = "chest-x-rays"
"""The task that accuracy is predicted by, unless another is named."""

StudyFile = Annotated[
    Path | None,
    typer.Argument(help="The study file, default study.toml; with --cohorts optional, for all else."),
]
Cohorts = Annotated[
    str | None,
    typer.Option(help="Training patients of each hospital, apart by commas: recommend a setting."),
]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Overrides privacy.epsilon; with --cohorts the largest that is accepted."),
]
Trusts = Annotated[
    str | None,
    typer.Option(help="Overrides privacy.trust; with --cohorts all levels that would be accepted."),
]
Auroc = Annotated[float | None, typer.Option(help="With --cohorts: the smallest AUROC.")]
BalancedAccuracy = Annotated[
    float | None, typer.Option(help="With --cohorts: the smallest balanced accuracy.")
]
Risk = Annotated[
    float | None,
    typer.Option(help="With --cohorts: most that an attacker may find at 1 % false alarms, such as 0.02."),
]
RankBy = Annotated[
    str | None,
    typer.Option(
        help=f"With --cohorts: compare settings by {' or '.join(METRICS)}; default what a target is given for.",
    ),
]
Units = Annotated[
    str | None,
    typer.Option(help="With --cohorts: whom the guarantee may protect; patient by default, site, image."),
]
Images = Annotated[
    float | None, typer.Option(help="With --cohorts: images of a patient on average, for unit image.")
]
Methods = Annotated[
    str | None,
    typer.Option(help="With --cohorts: methods to choose from, of gradient,averaging,one-shot; default all."),
]
Networks = Annotated[
    str | None,
    typer.Option(help="With --cohorts: what may be trained, such as linear,cnn; default all that are known."),
]
Like = Annotated[
    str | None, typer.Option(help=f"With --cohorts: the task that yours resembles; default {LIKE}.")
]
Fit = Annotated[
    Path | None,
    typer.Option(help="With --cohorts: directory of a sweep of your own to predict from, not --like."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the arithmetic.")]
