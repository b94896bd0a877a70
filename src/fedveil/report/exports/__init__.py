"""A finished run for other programs and readers: an ONNX graph, a MONAI bundle, a model card."""

from pathlib import Path

from fedveil.errors import StudyError

__all__ = ["check_targets"]


def check_targets(*paths: Path | None) -> None:
    """`StudyError` if one of these files or folders exists, or if two are the same; None is left out."""
    named = [path for path in paths if path is not None]
    for path in named:
        if path.exists():
            raise StudyError(
                f"{path} exists", "an export never overwrites", "choose another name, or delete it"
            )
    if len({path.resolve() for path in named}) < len(named):
        raise StudyError(
            f"{', '.join(map(str, named))} name one place twice",
            "each export has a place of its own",
            "choose another name",
        )
