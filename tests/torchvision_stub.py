"""`import torchvision` where it is not installed: in this process and in those that tests start."""

import importlib.util
import os
import sys
from pathlib import Path

__all__ = ["install"]


def install() -> None:
    """Put the stub in `tests/stubs` on the path; the real torchvision is used where it is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    folder = str(Path(__file__).with_name("stubs"))
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))
