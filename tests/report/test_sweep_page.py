import itertools
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fedveil.errors import StudyError
from fedveil.io import json_line
from fedveil.privacy import Budget, Ledger, Mechanism
from fedveil.report import figure_alternatives, figure_trade_off, write_sweep
from fedveil.report.figures.alternatives import compare
from fedveil.report.figures.drawing import PAPER, canvas, style
from fedveil.report.figures.trade_off import Level, Sweep, draw, load_sweep
from fedveil.study import Study
from fedveil.sweeps import EVEN, NO_PRIVACY, Grid, Measurement

ALONE = {5: 0.1, 20: 0.3}
"""What going alone costs in the made-up results, by number of hospitals."""


def auroc(setting):
    if setting.arrangement == "alone":
        together = auroc(replace(setting, arrangement="federated"))
        return together - ALONE[setting.sites] / (1 if setting.trust != "none" else 2)
    if math.isinf(setting.epsilon):
        return 0.95
    return 0.95 - 0.02 / setting.epsilon - 0.01 * (setting.trust == "site") + 0.002 * setting.seed


def measured(setting):
    private = setting.trust != "none"
    return Measurement(
        setting=setting,
        units=1000,
        patients=1000,
        ratio=200 * setting.epsilon,
        epsilon_spent=setting.epsilon,
        true_positive_rate=min(1.0, 0.0123456 * setting.epsilon) if private else 1.0,
        advantage=0.11 if private else 1.0,
        auroc=auroc(setting),
        balanced_accuracy=auroc(setting) - 0.1,
        seconds=0.5,
    )


@pytest.fixture
def directory(tmp_path):
    """A sweep's directory with made-up results; returns a function of the grid's changes."""

    def make(study=None, **changes):
        lists = {
            "epsilon": (0.5, 1.0, 4.0, NO_PRIVACY),
            "trust": ("site", "secure-aggregation"),
            "unit": ("patient",),
            "sites": (5, 20),
            "alpha": (0.5,),
        }
        out = tmp_path / "sweep"
        out.mkdir()
        (out / "study.toml").write_text((study or Study()).to_toml())
        results = [measured(setting) for setting in Grid(**(lists | changes)).settings()]
        (out / "results.jsonl").write_text("".join(json_line(one.to_dict()) for one in results))
        return out

    return make


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href") and not value.startswith("#")]


def text(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_page_is_whole_and_loads_nothing(directory):
    page = write_sweep(directory()).read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.links
    assert "script" not in tags.seen
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert tags.seen.count("figure") == 5


def test_the_page_states_the_smallest_epsilon_that_is_close(directory):
    """Without privacy 0.95; at epsilon 4 secure aggregation is 0.005 below it, and site 0.015."""
    words = text(write_sweep(directory()).read_text())
    assert "Without privacy the AUROC is 0.950." in words
    assert "Secure aggregation: the smallest epsilon within 0.01 of that is 4 (AUROC 0.945)." in words
    assert (
        "Each hospital adds all its noise: no epsilon comes within 0.01 of that; the best is 0.935 at 4."
        in words
    )


def test_risk_is_rounded_up(directory):
    words = text(write_sweep(directory()).read_text()).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "1.3 %" in words
    assert "1.2 %" not in words


def test_intervals_are_those_of_the_mean_over_repeats(directory):
    """Five repeats, 0.002 apart: mean +0.004, half width t(0.975, 4) s / sqrt(5)."""
    words = text(write_sweep(directory(seeds=5)).read_text())
    half = 2.776445 * np.std(0.002 * np.arange(5), ddof=1) / np.sqrt(5)
    middle = 0.95 - 0.02 + 0.004
    assert f"{middle:.3f} ({middle - half:.3f}–{middle + half:.3f})" in words


def test_two_repeats_are_too_few_for_an_interval(directory):
    words = text(write_sweep(directory(seeds=2)).read_text())
    assert "Each setting was run twice, which is not enough for an interval." in words
    assert "–" not in words.split("Numbers")[-1].split("What was swept")[0]


def test_the_number_of_hospitals_is_shown_where_it_matters(directory):
    """The study trusts secure aggregation; what 20 hospitals cost shows where each of them adds all its noise."""
    words = text(write_sweep(directory()).read_text())
    figure = words.split("AUROC against epsilon, by number of hospitals")[1]
    assert figure.split("Held: ")[1].startswith("each hospital adds all its noise, Dirichlet 0.5")


def test_figures_lie_beside_the_page(directory):
    out = directory(alpha=(0.1, EVEN), unit=("patient", "image"))
    write_sweep(out)
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {
        "auroc-epsilon-trust.svg",
        "auroc-epsilon-sites.svg",
        "auroc-epsilon-alpha.svg",
        "auroc-epsilon-unit.svg",
        "balanced-accuracy-epsilon-trust.svg",
        "auroc-risk-trust.svg",
        "auroc-risk-sites.svg",
        "auroc-risk-alpha.svg",
        "auroc-risk-unit.svg",
    }
    path = figure_trade_off(out, out / "both.svg")
    assert path.read_text().count("<svg") == 1


def test_methods_are_compared_in_words(directory):
    words = text(write_sweep(directory(method=("gradient", "one-shot"))).read_text())
    assert "AUROC against epsilon, by training method" in words
    assert "one round of class means" in words
    assert "Thin grey line: without privacy (rounds of gradients), 0.950." in words


def test_names_are_escaped(directory):
    out = directory(Study().with_changes({"study": {"description": "<script>alert(1)</script>"}}))
    page = write_sweep(out).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_synthetic_images_are_marked(directory):
    assert "images are synthetic" in write_sweep(directory()).read_text()


def test_nothing_private_to_show_is_an_error(directory):
    with pytest.raises(StudyError, match="no finished setting"):
        write_sweep(directory(epsilon=(NO_PRIVACY,)))


def test_one_line_only_still_makes_a_page(directory):
    page = write_sweep(directory(epsilon=(1.0,), trust=("server",), sites=(7,))).read_text()
    assert "7 hospitals" in page
    assert "Add “none”" in page


def test_federation_is_compared_with_its_alternatives(directory):
    """At epsilon 1 together 0.93 (secure aggregation); alone as site: 0.92 less 0.1 or 0.3; in one place 0.93."""
    out = directory(baselines=True)
    page = write_sweep(out).read_text()
    words = text(page)
    assert (
        "At epsilon 1, 5 hospitals together reach an AUROC of 0.930, and each alone 0.820 on average: "
        "federation gains 0.110. All images in one place reach 0.930." in words
    )
    assert "At epsilon 1, 20 hospitals together reach an AUROC of 0.930, and each alone 0.620" in words
    assert "Together and in one place without privacy: 0.950. Alone without privacy: 0.900." in words
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"auroc-epsilon-arrangement-5.svg", "auroc-epsilon-arrangement-20.svg"} <= names
    assert "no privacy 0.950 0.950 0.900 +0.050" in words
    others = text(page).split("What was swept")[1]
    assert "5 hospitals, 20 hospitals" in others
    assert "1 hospitals" not in words
    assert "Models trained 118" in words
    assert figure_alternatives(out, out / "both.svg").read_text().count('id="axes_') == 2
    shutil.rmtree(out)
    with pytest.raises(StudyError, match="no alternatives"):
        figure_alternatives(directory(), out / "both.svg")


def test_other_figures_leave_alternatives_out(directory):
    found = load_sweep(directory(baselines=True))
    kept = tuple(one for one in found.results if one.setting.arrangement == "federated")
    plain = Sweep(found.study, kept)
    assert found.panels() == plain.panels()


def test_names_of_levels_lie_apart_and_in_their_order(directory):
    """Three levels within 0.004 of each other at the top, and three at the bottom of the figure."""
    found = load_sweep(directory(baselines=True))
    for base in (0.95, 0.901):
        levels = tuple(Level(label=f"level {k}", value=base - 0.002 * k) for k in range(3))
        with style():
            drawing = FigureCanvasAgg(canvas()).figure
            axes = drawing.add_subplot()
            draw(axes, replace(compare(found)[0], levels=levels), PAPER)
            drawing.draw_without_rendering()
            renderer = drawing.canvas.get_renderer()
            boxes = [Text.get_window_extent(one, renderer) for one in axes.texts]
        assert len(boxes) == 3
        assert all(lower.y1 <= upper.y0 for upper, lower in itertools.pairwise(boxes))


def test_what_a_paid_sweep_cost_stands_first(directory):
    out = directory(sites=(5,), epsilon=(0.5, 1.0))
    budget = Budget(3.0, 1e-5)
    for name, trust in (("north", "secure-aggregation"), ("<b>south", "site")):
        (out / "ledgers").mkdir(exist_ok=True)
        with Ledger(out / "ledgers" / f"{name}.jsonl", budget) as ledger:
            ledger.reserve(Mechanism(5.0, 1.0, 4), study="sweep", trust=trust)
    page = write_sweep(out).read_text()
    words = text(page)
    assert "All models of this sweep together: ε ≤ 3, δ = 10⁻⁵ per patient" in words
    assert "under secure aggregation" in words
    assert "on the same patients it adds to the total" in words
    assert "Nothing here was charged to" not in words
    assert "<b>south" not in page
    shutil.rmtree(out / "ledgers")
    assert "What it cost" not in text(write_sweep(out).read_text())
