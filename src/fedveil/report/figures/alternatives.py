"""Federation against its alternatives in a sweep: the same guarantee with pooled images, or with each hospital alone.

The alternatives are trained and evaluated like the federation. For hospitals that train alone the mean is shown, on
all test images, not only on those similar to a hospital's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedveil.report import formatting
from fedveil.report.figures.trade_off import (
    TRUST,
    Axis,
    Level,
    Panel,
    Point,
    Sweep,
    cell,
    held_words_of,
    points_of,
)
from fedveil.report.tables import Table

__all__ = ["ARRANGEMENT", "compare", "comparison_sentences", "comparison_tables", "comparison_words"]

ARRANGEMENTS = {
    "federated": "hospitals together",
    "pooled": "all images in one place",
    "alone": "each hospital alone (mean)",
}
ARRANGEMENT = Axis(
    name="arrangement",
    title="federation against its alternatives",
    label=lambda value: ARRANGEMENTS[value],
)
LEVELS = {"federated": "together", "pooled": "in one place", "alone": "alone"}
"""Short names for the levels without privacy."""
SAME = 0.0015
"""Levels closer than this share one line and one label."""


def _panel(found: Sweep, sites: int) -> Panel:
    """Hospitals together, each alone and all images in one place, by epsilon, for one number of hospitals."""
    held = found.held() | {"sites": sites}
    lines, levels = [], []
    for value in found.values("arrangement"):
        results = found.at(**held, arrangement=value)
        points = points_of([m for m in results if m.setting.trust != "none"], "auroc", False)
        lines.append((ARRANGEMENT.label(value), points))
        bare = _bare(found, value, sites)
        levels += [Level(label=LEVELS[value], value=bare.mean)] if bare else []
    return Panel(
        axis=replace(ARRANGEMENT, title=f"{sites} hospitals and the alternatives"),
        metric="auroc",
        risk=False,
        lines=tuple(lines),
        bare=math.nan,
        bare_at="",
        held=held_words_of(held),
        levels=_merged(levels),
        suffix=f"-{sites}",
    )


def compare(found: Sweep) -> list[Panel]:
    """Federation against its alternatives, for the smallest and largest swept number of hospitals; empty without
    alternatives."""
    return [_panel(found, sites) for sites in _compared(found)]


def _compared(found: Sweep) -> list[int]:
    sites = found.values("sites")
    return list(dict.fromkeys((sites[0], sites[-1]))) if len(found.values("arrangement")) > 1 else []


def comparison_sentences(found: Sweep) -> list[str]:
    """The gain of federation for each comparison, at the swept epsilon nearest to the study's."""
    text = []
    for sites, panel in zip(_compared(found), compare(found), strict=True):
        by = {value: _at(found, points) for value, (_, points) in _lines(found, panel)}
        together, alone, pooled = by.get("federated"), by.get("alone"), by.get("pooled")
        if together is None or alone is None:
            continue
        gain = together.mean - alone.mean
        text.append(
            f"At epsilon {together.x:g}, {sites} hospitals together reach an AUROC of "
            f"{formatting.score(together.mean)}, and each alone {formatting.score(alone.mean)} on average: federation "
            f"{'gains' if gain >= 0 else 'loses'} {formatting.score(abs(gain))}."
            + (f" All images in one place reach {formatting.score(pooled.mean)}." if pooled else "")
        )
    return text


def comparison_words(found: Sweep) -> list[tuple[str, str]]:
    """The meaning of each line of a comparison: a name and an explanation."""
    trust = found.held()["trust"]
    return [
        (
            ARRANGEMENTS["federated"],
            f"Images stay where they are, and the hospitals train one model ({TRUST[trust]}).",
        ),
        (
            ARRANGEMENTS["pooled"],
            "One model, trained on pooled images by a server that is trusted with them. The guarantee against "
            "everyone who sees the model is the same. Federation avoids pooling the images.",
        ),
        (
            ARRANGEMENTS["alone"],
            "Every hospital trains on its own patients only, with the same guarantee, and the accuracies are averaged. "
            "All are evaluated on all test images.",
        ),
        ("thin grey lines", "The same three without any privacy."),
    ]


def comparison_tables(found: Sweep) -> list[Table]:
    """For each number of hospitals, by epsilon: the arrangements, and the gain of federation over training alone."""
    names = [LEVELS[value].capitalize() for value in found.values("arrangement")]
    head = ("Epsilon", *names, "Gain over alone")
    tables = []
    for sites in found.values("sites") if len(names) > 1 else []:
        panel = _panel(found, sites)
        lines = {value: {p.x: p for p in points} for value, (_, points) in _lines(found, panel)}
        rows = [
            _row(f"{x:g}", {value: line.get(x) for value, line in lines.items()})
            for x in sorted(set().union(*lines.values()))
        ]
        bare = {value: _bare(found, value, sites) for value in lines}
        if any(bare.values()):
            rows.append(_row("no privacy", bare))
        tables.append(Table(f"AUROC of federation and its alternatives ({panel.held})", head, tuple(rows)))
    return tables


def _row(epsilon: str, by: Mapping[str, Point | None]) -> tuple[str, ...]:
    together, alone = by.get("federated"), by.get("alone")
    gain = f"{together.mean - alone.mean:+.3f}" if together and alone else formatting.UNDEFINED
    return (epsilon, *(cell(one) if one else formatting.UNDEFINED for one in by.values()), gain)


def _bare(found: Sweep, arrangement: str, sites: int) -> Point | None:
    """The level of an arrangement without privacy."""
    results = found.at(**found.held() | {"sites": sites}, arrangement=arrangement)
    points = points_of([m for m in results if m.setting.trust == "none"], "auroc", False)
    return points[0] if points else None


def _lines(found: Sweep, panel: Panel) -> list[tuple[str, tuple[str, tuple[Point, ...]]]]:
    return list(zip(found.values("arrangement"), panel.lines, strict=True))


def _at(found: Sweep, points: Sequence[Point]) -> Point | None:
    """The point at the epsilon nearest to the study's."""
    wanted = found.study.privacy.largest_epsilon
    return min(points, key=lambda point: abs(math.log(point.x / wanted)), default=None)


def _merged(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Levels from high to low; those that coincide are merged at their mean.

    >>> [level.label for level in _merged([Level(label="a", value=0.9), Level(label="b", value=0.9004)])]
    ['a and b']
    """
    groups: list[list[Level]] = []
    for level in sorted(levels, key=lambda one: -one.value):
        if groups and groups[-1][0].value - level.value < SAME:
            groups[-1].append(level)
        else:
            groups.append([level])
    return tuple(
        Level(
            label=" and ".join(one.label for one in levels if one in group),
            value=float(np.mean([one.value for one in group])),
        )
        for group in groups
    )
