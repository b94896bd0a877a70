import json
import math
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedveil.errors import StudyError
from fedveil.privacy import Mechanism
from fedveil.report import load, render, write_report

MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{0}$",
    "_hidden{{ 7 * 7 }}{% raw %}",
    "肺炎 & 'quotes' \u202e",
)


class Page(HTMLParser):
    """The page as a browser reads it: tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def having(self, attribute: str) -> list[tuple[str, str]]:
        return [(tag, values[attribute]) for tag, values in self.tags if attribute in values]


def page_of(run: Path) -> Page:
    page = Page(render(load(run)))
    assert page.open == []
    return page


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


SHAPES: dict[str, dict[str, Any]] = {
    "binary": {},
    "three classes": {"classes": ("normal", "bacteria", "virus"), "trust": "server", "unit": "image"},
    "nine classes": {"classes": tuple("abcdefghi"), "trust": "site", "images": 300},
    "no privacy": {"trust": "none"},
    "sites protected": {"unit": "site"},
    "one round": {"rounds": 1},
    "one hospital": {"sites": 1, "trust": "site"},
}


@pytest.fixture(params=SHAPES, ids=str, scope="module")
def html(request: pytest.FixtureRequest, make_run: MakeRun) -> str:
    return render(load(make_run(**{"images": 120, "rounds": 8, **SHAPES[request.param]})))


@pytest.fixture
def page(html: str) -> Page:
    return Page(html)


def test_the_page_loads_nothing_from_anywhere(html: str, page: Page) -> None:
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert "@import" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, target in page.having("src") + page.having("href"):
        assert target.startswith("data:image/png;base64," if tag == "img" else "#"), target
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_is_well_formed_and_its_links_lead_somewhere(page: Page) -> None:
    assert page.open == []
    ids = Counter(value for _, value in page.having("id"))
    assert max(ids.values()) == 1
    for _, target in page.having("href"):
        assert target.removeprefix("#") in ids
    for _, names in page.having("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    for _, value in page.having("clip-path"):
        assert value.removeprefix("url(#").removesuffix(")") in ids


def test_every_picture_says_in_words_what_it_shows(page: Page) -> None:
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert drawings
    assert all(drawing["aria-hidden"] == "true" for drawing in drawings)
    described = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    charts = [value for tag, value in page.having("id") if tag == "figure" and value != "figure-confusion"]
    assert len(described) >= len(charts) >= 4
    assert all(len(label) > 8 for label in described)


def test_headings_form_an_outline(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_nothing_undefined_reaches_the_page(page: Page) -> None:
    words = set(re.findall(r"\w+", page.text))
    assert not words & {"nan", "NaN", "inf", "Undefined"}


def test_the_page_is_a_function_of_the_record(make_run: MakeRun) -> None:
    path = make_run(images=40, rounds=3)
    assert render(load(path)) == render(load(path))


def test_hostile_names_are_shown_as_text(make_run: MakeRun) -> None:
    study, description, site, note, reason = (f"{name} {k}" for k, name in enumerate(HOSTILE))

    def change(result: dict[str, Any]) -> None:
        result.update(study=study, description=description, notes=[note])
        result["sites"][0]["name"] = site
        result["data"].update(name=HOSTILE[1], description=HOSTILE[0])
        result["baselines"][HOSTILE[1]] = result["baselines"]["no_privacy"]
        result["seconds"][HOSTILE[0]] = 1.0

    path = make_run(classes=HOSTILE, images=200, rounds=2, change=change)
    rewrite(
        path / "provenance.json",
        lambda values: values.update(device=HOSTILE[1], packages={HOSTILE[0]: HOSTILE[1]}),
    )
    lines = (path / "rounds.jsonl").read_text().splitlines()
    dropped = {**json.loads(lines[1]), "dropped": [{"site": site, "reason": reason}]}
    (path / "rounds.jsonl").write_text(lines[0] + "\n" + json.dumps(dropped) + "\n")
    page = page_of(path)
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert all(source.startswith("data:image/png") for tag, source in page.having("src"))
    for text in (study, description, site, note, reason, *HOSTILE):
        assert re.sub(r"\s+", " ", text) in page.text


def test_names_stay_out_of_drawings(make_run: MakeRun) -> None:
    html = render(load(make_run(classes=HOSTILE, images=200, rounds=2)))
    for drawing in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert not any(piece in drawing for piece in ("alert", "frac", "_hidden", "肺炎"))


OPTIONAL: dict[str, Callable[[dict[str, Any]], object]] = {
    "description": lambda result: result.pop("description"),
    "secure_aggregation": lambda result: result.update(secure_aggregation=None),
    "releases": lambda result: result.pop("releases"),
    "baselines": lambda result: result.update(baselines=None),
    "data": lambda result: result.pop("data"),
    "notes": lambda result: result.pop("notes"),
    "seconds": lambda result: result.pop("seconds"),
    "sites": lambda result: result.update(sites=[]),
    "cohort sizes": lambda result: [
        site.pop(key) for site in result["sites"] for key in ("patients", "images", "class_counts")
    ],
    "per class": lambda result: result["metrics"]["test"].pop("per_class"),
    "majority": lambda result: result["metrics"]["test"].pop("majority"),
    "intervals": lambda result: [
        result["metrics"]["test"].pop(key) for key in ("auroc_interval", "balanced_accuracy_interval")
    ],
    "confusion": lambda result: result["metrics"]["test"].pop("confusion"),
    "threshold": lambda result: result["metrics"]["test"].pop("threshold"),
}


@pytest.mark.parametrize("part", OPTIONAL)
def test_the_page_does_without_optional_parts(make_run: MakeRun, part: str) -> None:
    page = page_of(make_run(images=60, rounds=4, change=OPTIONAL[part]))
    assert "The guarantee in plain words" in page.text


def test_the_page_does_without_all_optional_parts_at_once(make_run: MakeRun) -> None:
    def change(result: dict[str, Any]) -> None:
        result.update(sites=[], baselines=None, secure_aggregation=None, seconds=None)
        for key in ("description", "data", "notes", "releases"):
            del result[key]

    path = make_run(images=60, rounds=4, change=change)
    for ledger in (path / "ledgers").iterdir():
        ledger.unlink()
    (path / "ledgers").rmdir()
    (path / "examples.npz").unlink()
    rewrite(path / "provenance.json", lambda values: values.clear())
    page = page_of(path)
    assert not {"hospitals", "examples"} & {value for _, value in page.having("id")}


def test_a_study_without_a_test_set_shows_no_accuracy(make_run: MakeRun) -> None:
    path = make_run(images=20, rounds=3)
    rewrite(path / "result.json", lambda result: result.update(metrics={"test": None}))
    (path / "predictions.csv").unlink()
    rounds = [json.loads(line) | {"test": None} for line in (path / "rounds.jsonl").read_text().splitlines()]
    (path / "rounds.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rounds))
    page = page_of(path)
    assert "accuracy" not in {value for _, value in page.having("id")}
    assert "No metrics were measured between rounds" in page.text


def test_metrics_that_are_not_defined_are_dashes(make_run: MakeRun) -> None:
    def change(result: dict[str, Any]) -> None:
        test = result["metrics"]["test"]
        test.update(auroc=None, balanced_accuracy=math.nan, brier=None, auroc_interval=[None, None])
        test["per_class"][0].update(auroc=None, sensitivity=None)

    page = page_of(make_run(images=60, rounds=4, change=change))
    assert "This study —" in page.text.replace("This study—", "This study —")


def test_a_test_set_of_one_class_has_no_roc(make_run: MakeRun) -> None:
    path = make_run(images=30, rounds=2, change=lambda result: result["metrics"]["test"].pop("confusion"))
    text = (path / "predictions.csv").read_text()
    (path / "predictions.csv").write_text(re.sub(r"(person\d+),normal,", r"\1,pneumonia,", text))
    ids = {value for _, value in page_of(path).having("id")}
    assert "figure-roc" not in ids
    assert "figure-calibration" in ids


def test_no_privacy_is_said_loudly_and_is_not_to_be_signed(make_run: MakeRun) -> None:
    html = render(load(make_run(images=30, rounds=2, trust="none")))
    assert '<div class="notice danger"' in html
    assert "No privacy" in html
    assert not {"signature", "risk", "mechanism"} & {value for _, value in Page(html).having("id")}


def test_a_private_run_is_signed_for_the_very_result(make_run: MakeRun) -> None:
    path = make_run(images=30, rounds=2)
    record = load(path)
    page = page_of(path)
    assert "signature" in {value for _, value in page.having("id")}
    assert page.text.count(record.digest) == 2
    assert 'class="notice danger"' not in render(record)


def test_a_guarantee_that_its_releases_exceed_is_exposed(make_run: MakeRun) -> None:
    def change(result: dict[str, Any]) -> None:
        noisier = Mechanism(noise_multiplier=2.0, clip_norm=1.0, steps=2)
        result["releases"][1]["mechanism"] = noisier.to_dict()

    html = render(load(make_run(images=30, rounds=2, change=change)))
    assert "The stated guarantee does not hold" in html


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (Mechanism(29.3, 1.0, steps=2), "exactly one Gaussian mechanism"),
        (Mechanism(29.3, 1.0, steps=2, sampling_rate=0.5), "Poisson sampling"),
        (Mechanism(29.3, 1.0, steps=2, epsilon_slack=1e-4), "integer-valued"),
    ],
)
def test_the_accounting_is_described_as_it_is(make_run: MakeRun, training: Mechanism, words: str) -> None:
    def change(result: dict[str, Any]) -> None:
        result["releases"][1]["mechanism"] = training.to_dict()

    assert words in page_of(make_run(images=30, rounds=2, change=change)).text


def test_example_images_are_called_what_they_are(make_run: MakeRun) -> None:
    path = make_run(images=40, rounds=2)
    page = page_of(path)
    assert "Real test images are part of this page." in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 8
    assert page.text.count("✓ right") + page.text.count("✕ wrong") == 8
    rewrite(path / "result.json", lambda result: result["data"].update(synthetic=True))
    page = page_of(path)
    assert "Real test images" not in page.text
    assert "Synthetic images" in page.text


def test_two_hundred_hospitals_and_fourteen_classes_fit(make_run: MakeRun) -> None:
    classes = tuple(f"class {k}" for k in range(14))
    html = render(load(make_run(sites=200, classes=classes, images=700, rounds=40)))
    assert html.count('<th scope="row"><bdi>site-') == 400
    assert len(html) < 1_500_000


def test_drop_outs_are_listed_by_round(make_run: MakeRun) -> None:
    page = page_of(make_run(images=30, rounds=20))
    assert "no answer within 30 s" in page.text
    assert "Triangles mark the 1 round in which" in page.text


def test_the_report_is_written_whole_or_not_at_all(make_run: MakeRun) -> None:
    path = make_run(images=30, rounds=2)
    assert write_report(path) == path / "report.html"
    before = (path / "report.html").read_text()
    assert before.startswith("<!doctype html>")
    rewrite(path / "result.json", lambda result: result.update(study=7))
    with pytest.raises(StudyError, match="study"):
        write_report(path)
    assert (path / "report.html").read_text() == before
    assert not list(path.glob("*.tmp")) + list(path.glob(".*.tmp"))


def test_a_report_that_cannot_be_written_says_so(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = make_run(images=30, rounds=2)
    monkeypatch.setattr("fedveil.report.page.write_atomic", full)
    with pytest.raises(StudyError, match="No space left on device"):
        write_report(path)
