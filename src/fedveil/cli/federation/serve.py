"""``fedveil federation serve``."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.engines import need_flower
from fedveil.cli.output.console import speak_plainly
from fedveil.cli.output.logs import log_to_stderr
from fedveil.errors import InvalidValue

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
        from fedveil.deploy.coordinator.hospitals import Federation

        home = Federation.load(folder)
        if home.table.engine != "flower":
            raise InvalidValue(
                f"the engine of this federation is {home.table.engine}",
                "only over Flower is there a program that stays while studies come and go",
                "run `fedveil coordinate`; it listens while its study runs",
            )
        need_flower()
        from fedveil.deploy.flower.process import serve
        from fedveil.deploy.provisioning.expiry import expiring

        for text in expiring(folder):
            log.warning("%s", text)
        serve(home.link)
