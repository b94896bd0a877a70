import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fedveil.errors import InvalidValue, StudyError
from fedveil.report import figure_result

MakeRun = Callable[..., Path]


@pytest.mark.parametrize("trust", ["secure-aggregation", "none"])
def test_the_figure_is_an_svg_that_needs_no_font(make_run: MakeRun, tmp_path: Path, trust: str) -> None:
    run = make_run(images=60, rounds=5, trust=trust)
    path = figure_result(run, tmp_path / "figure.svg")
    tags = {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()}
    assert "path" in tags
    assert "text" not in tags
    assert path.read_bytes() == figure_result(run, tmp_path / "again.svg").read_bytes()


def test_the_figure_is_a_png_on_white(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(images=60, rounds=5, classes=("a", "b", "c"))
    with Image.open(figure_result(run, tmp_path / "figure.png")) as image:
        assert image.width > 1500
        assert image.convert("RGB").getpixel((2, image.height - 2)) == (255, 255, 255)


def test_a_run_without_curves_still_has_a_figure(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(images=60, rounds=2)
    lines = [json.loads(line) | {"test": None} for line in (run / "rounds.jsonl").read_text().splitlines()]
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert figure_result(run, tmp_path / "figure.svg").stat().st_size > 1000


def test_another_format_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"figure\.gif"):
        figure_result(make_run(images=20, rounds=2), tmp_path / "figure.gif")


def test_a_place_that_is_not_there_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be written"):
        figure_result(make_run(images=20, rounds=2), tmp_path / "absent" / "figure.svg")
