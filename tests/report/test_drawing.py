"""Drawings inside a page: small, and what is written in them is left as it was written."""

import re

from fedveil.report.figures.drawing import canvas, inline_svg, style


def test_coordinates_lose_digits_and_words_do_not():
    with style():
        drawing = canvas(3.0, 2.0)
        drawing.figure.subplots().text(0.123456789, 0.5, "AUROC 0.9479")
        text = inline_svg(drawing, "one")
    assert "AUROC 0.9479" in text
    for tag in re.findall(r"<[^>]*>", text):
        assert not re.search(r"\d\.\d{3}", tag)
