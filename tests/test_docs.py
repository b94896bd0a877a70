"""What the docs state about the code is read from the code."""

import re
from pathlib import Path

import pytest

from fedveil.study.settings.template import schema_rows

PROJECT = Path(__file__).resolve().parents[1]
SOURCES = [path.read_text(encoding="utf-8") for path in (PROJECT / "tests").rglob("test_*.py")]


def pitfalls():
    return re.findall(r"`(test_\w+)`", (PROJECT / "docs" / "pitfalls.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", pitfalls())
def test_every_pitfall_has_its_test(name):
    assert any(re.search(rf"^ *def {name}\b", source, re.MULTILINE) for source in SOURCES)


def test_the_pitfalls_are_all_there():
    assert len(pitfalls()) >= 19


def test_the_study_page_lists_every_setting():
    """Regenerate it with `python -m fedveil.study.settings.template > docs/study.md`."""
    page = (PROJECT / "docs" / "study.md").read_text(encoding="utf-8")
    rows = [
        f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |"
        for key, default, meaning in schema_rows()
    ]
    missing = [row for row in rows if row not in page]
    assert not missing, f"docs/study.md is out of date: {missing}"
    assert sum(line.startswith("| `") for line in page.splitlines()) == len(rows)


def test_links_between_pages_lead_somewhere():
    for page in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_citation_names_the_version_that_is_built():
    built = re.search(r'^version = "(.+)"$', (PROJECT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (.+)$", (PROJECT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert built is not None
    assert cited is not None
    assert cited[1] == built[1]
