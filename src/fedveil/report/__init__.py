"""From a run directory to a report: one self-contained HTML page, and a figure for a README.

`load` turns the files into a `RunRecord` and refuses what is incomplete or damaged; `render` turns the
record into a page, and does nothing else; `write_report` does both and writes the page whole. Figures
(`accuracy`, `learning`, `risk`), tables (`tables`) and sentences (`wording`) come from the record alone, so
each can be tested without a page; `figure_result` draws the two that summarise a run into a separate file.
Names from the data are untrusted: they are escaped in the page, and no drawing holds any.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.report.figures.summary import figure_result, svg_result
    from fedveil.report.loader import load
    from fedveil.report.page import render, write_report
    from fedveil.report.records import RunRecord
    from fedveil.report.sweep import figure_alternatives, figure_trade_off, write_sweep

__all__ = [
    "RunRecord",
    "figure_alternatives",
    "figure_result",
    "figure_trade_off",
    "load",
    "render",
    "svg_result",
    "write_report",
    "write_sweep",
]

__getattr__, __dir__ = on_first_use(__name__)
