"""A statement as PDF: a printout of the signed page for a file or a meeting, which names the page by its hash."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedveil.errors import InvalidValue

if TYPE_CHECKING:
    from fpdf import FPDF

__all__ = ["need_pdf", "printed"]

_WIDTHS = {2: (30, 70), 4: (28, 14, 29, 29)}
"""Widths of columns in per cent, by their number."""
_PAGES = "\ue000"
"""Stands for the number of pages. It is not printable, so that `_line` leaves it in no text."""


def need_pdf() -> None:
    """`InvalidValue` if the package that writes PDF is not installed."""
    if find_spec("fpdf") is None:
        raise InvalidValue(
            "fpdf2 is not installed", "PDF files are written with it", 'pip install "fedveil[pdf]"'
        )


def printed(values: Mapping[str, Any], page: str, sha256: str) -> bytes:
    """The content of a signed page as PDF.

    Args:
        values: what the page's template shows.
        page: name of the signed file; ``sha256`` is its hash.
    """
    pdf = _document(
        f"Statement of {values['site']} on study {values['name']} {values['digest'][:12]}", values
    )
    _words(pdf, f"Statement of {values['site']} on study {values['name']}", size=16, style="B")
    _words(
        pdf,
        f"Made {values['made']} by the site service of {values['site']}, fingerprint {values['fingerprint']}. "
        f"This is a printout without a signature. The signed original is {page}, SHA-256 {sha256}; check it "
        "with fedveil statement verify FILE --key FINGERPRINT.",
    )
    _title(pdf, "What was decided")
    for number, one in enumerate(values["decisions"], 1):
        _words(pdf, f"{number}. {one}")
    if not values["decisions"]:
        _words(pdf, "Approved with version 0.1, which kept no name, role and reason.")
    _title(pdf, "What the study is, and what it may cost here")
    _rows(pdf, [*values["rows"], ("trust", values["trust"])])
    if values["curve"]:
        _words(pdf, "The same guarantee as a curve; all rows hold at once.")
        curve = [(f"{epsilon:g}", f"{delta:.3g}") for epsilon, delta in values["curve"]]
        _table(pdf, ("Epsilon", "Delta at most"), curve)
    _title(pdf, "What was charged")
    if values["charged"]:
        _table(pdf, ("Release", "Charges", "First", "Last"), values["charged"])
    else:
        _words(pdf, "Nothing.")
    _words(pdf, "The budget of this hospital, over all studies.")
    _rows(pdf, values["budget"])
    _title(pdf, "Software at this hospital")
    _rows(pdf, values["software"])
    _title(pdf, "The study file as it was offered")
    _words(pdf, f"Digest of the agreement: {values['digest']}")
    for line in values["study"].splitlines():
        _words(pdf, line or " ", size=7.5, family="mono", height=3.6)
    return bytes(pdf.output())


def _document(title: str, values: Mapping[str, Any]) -> "FPDF":
    from fpdf import FPDF

    class Pages(FPDF):
        def footer(self) -> None:
            self.set_y(-12)
            self.set_font("sans", size=7.5)
            self.cell(0, 5, _shown(self, f"{title}, page {self.page_no()} of ") + _PAGES, align="C")

    logging.getLogger("fontTools").setLevel(logging.ERROR)
    pdf = Pages(format="A4")
    pdf.alias_nb_pages(_PAGES)
    fonts = Path(str(getattr(find_spec("matplotlib"), "origin", ""))).parent / "mpl-data" / "fonts" / "ttf"
    pdf.add_font("sans", "", fonts / "DejaVuSans.ttf")
    pdf.add_font("sans", "B", fonts / "DejaVuSans-Bold.ttf")
    pdf.add_font("mono", "", fonts / "DejaVuSansMono.ttf")
    pdf.set_title(_line(title))
    pdf.set_lang("en")
    pdf.set_creation_date(datetime.fromisoformat(values["made"]))
    pdf.set_margin(20)
    pdf.set_auto_page_break(True, 18)
    pdf.add_page()
    return pdf


def _title(pdf: "FPDF", text: str) -> None:
    pdf.ln(3)
    _together(pdf)
    _words(pdf, text, size=12, style="B")


def _together(pdf: "FPDF") -> None:
    """A new page unless a label and the beginning of its text still fit on this one."""
    if pdf.will_page_break(16):
        pdf.add_page()


def _words(
    pdf: "FPDF", text: str, *, size: float = 9.5, style: str = "", family: str = "sans", height: float = 0.0
) -> None:
    from fpdf.enums import WrapMode

    pdf.set_font(family, style, size)
    wrap = WrapMode.CHAR if family == "mono" else WrapMode.WORD
    pdf.multi_cell(
        0, height or size * 0.52, _shown(pdf, text), align="L", new_x="LMARGIN", new_y="NEXT", wrapmode=wrap
    )


def _rows(pdf: "FPDF", rows: Iterable[tuple[str, str]]) -> None:
    """Labels and texts, one below the other, so that a text of any length breaks between pages."""
    for label, text in rows:
        if label:
            _together(pdf)
            _words(pdf, label, size=8.5, style="B")
        _words(pdf, text or " ", size=8.5)
    pdf.ln(2)


def _table(pdf: "FPDF", head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table of short cells."""
    from fpdf.enums import TableBordersLayout

    pdf.set_font("sans", "", 8.5)
    with pdf.table(
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        col_widths=_WIDTHS.get(len(head)),
        line_height=4.4,
        padding=0.7,
        text_align="LEFT",
    ) as table:
        for cells in (head, *rows):
            line = table.row()
            for cell in cells:
                line.cell(_shown(pdf, str(cell)))
    pdf.ln(2)


def _line(text: str) -> str:
    """Text on one line; what steers the direction or the display of others is left out."""
    return "".join(one if one.isprintable() else " " for one in text)


def _shown(pdf: "FPDF", text: str) -> str:
    """Text on one line, with the number of each character that one of the fonts lacks in its place."""
    from fpdf.fonts import TTFFont

    tables = [font.cmap for font in pdf.fonts.values() if isinstance(font, TTFFont)]
    return "".join(one if all(ord(one) in table for table in tables) else _number(one) for one in _line(text))


def _number(one: str) -> str:
    r"""The number of a character, as Python writes it.

    >>> print(_number("\u4e2d"))
    \u4e2d
    """
    return f"\\u{ord(one):04x}" if ord(one) <= 0xFFFF else f"\\U{ord(one):08x}"
