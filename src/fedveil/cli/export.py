"""The command that writes a finished run for other programs and readers."""

from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly

__all__ = ["export"]


def export(
    directory: Annotated[Path, typer.Argument(help="A finished run directory.")],
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="File for an ONNX graph of encoder and head together.")
    ] = None,
    monai: Annotated[Path | None, typer.Option("--monai", help="Folder for a MONAI bundle.")] = None,
    card: Annotated[Path | None, typer.Option("--card", help="File for a model card in Markdown.")] = None,
) -> None:
    """Write a run's model as an ONNX graph or a MONAI bundle, or its model card.

    Example: fedveil export runs/first --onnx model.onnx --card model-card.md
    """
    from fedveil.errors import InvalidValue
    from fedveil.report import load
    from fedveil.report.exports import check_targets
    from fedveil.study import TrainedModel

    with speak_plainly():
        if onnx is None and monai is None and card is None:
            raise InvalidValue(
                "nothing to write was named", "an export has a kind", "give --onnx, --monai or --card"
            )
        check_targets(onnx, monai, card)
        record, model = load(directory), TrainedModel.load(directory)
        if onnx is not None:
            from fedveil.report.exports.graph import write_onnx

            console.print(f"wrote {write_onnx(model, onnx)}", soft_wrap=True, markup=False)
        if monai is not None:
            from fedveil.report.exports.bundle import write_bundle

            console.print(f"wrote {write_bundle(model, record, monai)}", soft_wrap=True, markup=False)
        if card is not None:
            from fedveil.report.exports.card import write_card

            console.print(f"wrote {write_card(record, model, card)}", soft_wrap=True, markup=False)
