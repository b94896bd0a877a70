"""``fedveil federation serve``."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.flower import need_flower
from fedveil.cli.output.console import speak_plainly
from fedveil.cli.output.logs import log_to_stderr

__all__ = ["federation_serve"]

log = logging.getLogger("fedveil.coordinator")


def federation_serve(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = Path("coordinator"),
) -> None:
    """Run the SuperLink until it is stopped, for any number of studies at the same time.

    Without it, a study starts the SuperLink and stops it when no study is left.

    Example: fedveil federation serve lungs/coordinator
    """
    with speak_plainly():
        log_to_stderr()
        need_flower()
        from fedveil.deploy.coordinator.hospitals import Federation
        from fedveil.deploy.flower.process import serve
        from fedveil.deploy.provisioning.expiry import expiring

        home = Federation.load(folder)
        for text in expiring(folder):
            log.warning("%s", text)
        serve(home.link)
