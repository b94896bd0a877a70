"""From a sweep to a report: accuracy against privacy, as figures, a table and one self-contained page.

Every figure varies epsilon and one other axis; the rest is fixed at the study's own setting, or near it, as stated
in the caption. Bands are 95 % intervals of the mean over repeats (Student's t), if there are three or more.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedveil.errors import StudyError
from fedveil.io import write_atomic
from fedveil.report import formatting
from fedveil.report.figures.alternatives import (
    ARRANGEMENT,
    compare,
    comparison_sentences,
    comparison_tables,
    comparison_words,
)
from fedveil.report.figures.charts import Chart, legend_line
from fedveil.report.figures.drawing import PAGE, PAPER, canvas, inline_svg, style
from fedveil.report.figures.trade_off import (
    AXES,
    METRICS,
    Panel,
    Sweep,
    cell,
    draw,
    held_words_of,
    load_sweep,
)
from fedveil.report.tables import Table
from fedveil.report.wording import guarantee_line, protected
from fedveil.sweeps import NAMED, Setting, knees

__all__ = ["figure_alternatives", "figure_trade_off", "write_sweep"]

TITLE = 60
"""Characters in a line above a figure for use outside the page."""


def write_sweep(directory: Path) -> Path:
    """Write ``sweep.html`` and the figures of a sweep's finished settings; return the page's path.

    Raises:
        StudyError: there is no sweep, or none of its settings with privacy is finished.
    """
    found = load_sweep(directory)
    (directory / "figures").mkdir(exist_ok=True)
    for panel in itertools.chain(*found.panels(), compare(found)):
        _save([panel], directory / "figures" / f"{panel.key}.svg")
    path, page = directory / "sweep.html", render(found).encode()
    write_atomic(path, lambda file: file.write(page))
    return path


def figure_trade_off(directory: Path, path: Path) -> Path:
    """Draw the first two figures of a sweep side by side on white into ``path`` (.svg), and return it."""
    found = load_sweep(directory)
    _save(found.panels()[0][:2], path)
    return path


def figure_alternatives(directory: Path, path: Path) -> Path:
    """Draw federation against its alternatives on white into ``path`` (.svg), and return it.

    Raises:
        StudyError: the sweep measured no alternatives.
    """
    panels = compare(load_sweep(directory))
    if not panels:
        raise StudyError(
            f"{directory} holds no alternatives", "the figure compares them", "sweep with --baselines"
        )
    _save(panels, path)
    return path


def render(found: Sweep) -> str:
    """The page, a function of only the results."""
    environment = Environment(
        loader=PackageLoader("fedveil.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    accuracy, risk = ([_chart(panel) for panel in panels] for panels in found.panels())
    return environment.get_template("sweep.html.j2").render(
        study=found.study.study.name,
        description=found.study.study.description,
        source=Path(found.study.data.source).name,
        synthetic=found.study.data.source == "phantom",
        models=formatting.count(_models(found)),
        repeats=_repeats(found),
        held=found.held_words(),
        findings=_findings(found),
        knee_table=_knee_table(found),
        accuracy=accuracy,
        risk=risk,
        comparisons=[_chart(panel) for panel in compare(found)],
        compared=comparison_sentences(found),
        comparison_words=comparison_words(found),
        comparison_tables=comparison_tables(found),
        paid=_paid(found),
        named=NAMED in found.values("alpha"),
        risk_table=_risk_table(found),
        tables=[_accuracy_table(found, metric) for metric in METRICS],
        settings=_settings_table(found),
    )


def _chart(panel: Panel) -> Chart:
    with style():
        drawing = canvas()
        draw(drawing.add_subplot(), panel, PAGE)
        svg = inline_svg(drawing, panel.key)
    against, metric = "risk" if panel.risk else "epsilon", METRICS[panel.metric]
    levels = " ".join(
        f"{level.label[0].upper()}{level.label[1:]} without privacy: {formatting.score(level.value)}."
        for level in panel.levels
    )
    ends = "; ".join(
        f"{name} from {formatting.score(points[0].mean)} at the smallest to {formatting.score(points[-1].mean)} at the "
        f"largest {against}"
        for name, points in panel.lines
        if points
    )
    where = f" ({panel.bare_at})" if panel.bare_at else ""
    bare = (
        f" Thin grey line: without privacy{where}, {formatting.score(panel.bare)}."
        if math.isfinite(panel.bare)
        else levels and f" Thin grey lines, no privacy. {levels}"
    )
    return Chart(
        panel.key,
        f"{metric} against {against}, {panel.axis.title}",
        svg,
        f"{metric} against {against}: {ends}.{bare}",
        f"Held: {panel.held}.{bare}",
        tuple(legend_line(name, series) for series, (name, _) in enumerate(panel.lines)),
    )


def _save(panels: Sequence[Panel], path: Path) -> None:
    """Figures side by side on white, for use outside the page."""
    with style(text_as_paths=True):
        drawing = canvas(5.0 * len(panels), 4.2)
        drawing.patch.set_visible(True)
        drawing.patch.set_facecolor("white")
        for number, panel in enumerate(panels, 1):
            axes = drawing.add_subplot(1, len(panels), number)
            draw(axes, panel, PAPER)
            held = textwrap.fill(panel.held, TITLE)
            axes.set_title(held, color=PAPER.muted, fontsize=9, loc="left")
            axes.legend(
                axes.get_lines()[: len(panel.lines)],
                [name for name, _ in panel.lines],
                loc="lower right",
                frameon=False,
                fontsize=9.5,
                labelcolor=PAPER.ink,
            )
        write_atomic(path, lambda file: drawing.savefig(file, format="svg", metadata={"Date": None}))


def _paid(found: Sweep) -> dict[str, object] | None:
    """The page's statement on a sweep that was charged to real hospitals."""
    if found.paid is None:
        return None
    guarantee = found.paid.guarantee
    return {
        "line": guarantee_line(guarantee, None),
        "statements": protected(guarantee, None),
        "table": Table(
            "Charged so far",
            ("Hospital", "ε charged", "ε paid"),
            tuple(
                (name, formatting.at_most(spent), formatting.at_most(guarantee.epsilon))
                for name, spent in found.paid.spent.items()
            ),
        ),
    }


def _models(found: Sweep) -> int:
    """The number of trained models: hospitals that train alone have one each."""
    settings = [m.setting for m in found.results]
    return sum(one.sites if one.arrangement == "alone" else 1 for one in settings)


def _repeats(found: Sweep) -> int:
    return len({m.setting.seed for m in found.results})


def _findings(found: Sweep) -> list[str]:
    """The recommendation: for each trust level the least epsilon whose AUROC is close to that without privacy."""
    panel, held = found.panel(AXES[0], "auroc"), found.held("trust")
    if not math.isfinite(panel.bare):
        return []
    text = [f"Without privacy the AUROC is {formatting.score(panel.bare)}."]
    for one in knees(found.results):
        if any(getattr(one.setting, name) != value for name, value in held.items() if name != "trust"):
            continue
        name = AXES[0].label(one.trust)
        reached = formatting.score(one.auroc)
        end = (
            f"no epsilon comes within {one.tolerance:g} of that; the best is {reached} at {one.at:g}."
            if math.isinf(one.epsilon)
            else f"the smallest epsilon within {one.tolerance:g} of that is {one.epsilon:g} (AUROC {reached})."
        )
        text.append(f"{name[0].upper()}{name[1:]}: {end}")
    return text


def _knee_table(found: Sweep) -> Table | None:
    """The least epsilon per trust and number of hospitals, with its interval over repeats; None without any."""
    rows = []
    for one in knees(found.results):
        other = held_words_of(
            {
                axis.name: getattr(one.setting, axis.name)
                for axis in AXES
                if axis.name not in ("trust", "sites")
            }
            | {"trust": one.trust, "sites": one.setting.sites}
        )
        ends = ["none" if math.isinf(end) else f"{end:g}" for end in (one.low, one.high)]
        rows.append(
            (
                other,
                "none" if math.isinf(one.epsilon) else f"{one.epsilon:g}",
                formatting.UNDEFINED if math.isnan(one.low) else f"{ends[0]} to {ends[1]}",
                formatting.score(one.auroc),
                formatting.score(one.bare),
            )
        )
    if not rows:
        return None
    columns = ("Setting", "Least epsilon", "95 % of repeats", "AUROC there", "No privacy")
    return Table("The least epsilon that keeps the AUROC within 0.01", columns, tuple(rows))


def _accuracy_table(found: Sweep, metric: str) -> Table:
    panel = found.panel(AXES[0], metric)
    columns = [{point.x: point for point in points} for _, points in panel.lines]
    rows = [
        (f"{x:g}", *(cell(column[x]) if x in column else formatting.UNDEFINED for column in columns))
        for x in sorted(set().union(*columns))
    ]
    if math.isfinite(panel.bare):
        rows.append(("no privacy", *(formatting.score(panel.bare) for _ in columns)))
    caption = f"{METRICS[metric]} ({found.held_words('trust')})"
    return Table(caption, ("Epsilon", *(name for name, _ in panel.lines)), tuple(rows))


def _risk_table(found: Sweep) -> Table:
    """What each epsilon allows an attacker, as percentages."""
    held = found.held()
    worst = {
        one.setting.epsilon: one for one in found.at(unit=held["unit"]) if one.setting.trust == held["trust"]
    }
    rows = tuple(
        (
            f"{epsilon:g}",
            f"{formatting.percent(one.true_positive_rate, bound=True)}",
            f"{formatting.percent((1 + one.advantage) / 2, bound=True)}",
        )
        for epsilon, one in sorted(worst.items())
    )
    return Table(
        f"At most, per {held['unit']}",
        ("Epsilon", "Found at 1 false alarm in 100", "Right about who took part"),
        rows,
    )


def _settings_table(found: Sweep) -> Table:
    names = [field.name for field in fields(Setting) if field.name != "seed"]
    rows = []
    for name in names:
        values = found.values(name)
        axis = next((axis for axis in (*AXES, ARRANGEMENT) if axis.name == name), None)
        rows.append((name, ", ".join(axis.label(v) if axis else f"{v:g}" for v in values)))
    return Table("What was swept", ("Setting", "Values"), tuple(rows), text=2)
