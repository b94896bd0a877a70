"""The programs of a hospital: the site service and the node."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.encoders.device import DeviceName, on_device, with_encoders_of
from fedveil.cli.engines import need_engine
from fedveil.cli.output.console import speak_plainly
from fedveil.cli.output.logs import LogFormat, log_to_stderr
from fedveil.cli.site.options import Folder, load_site

__all__ = ["site_connect", "site_serve"]


def site_serve(
    folder: Folder = Path("site"),
    device: DeviceName = "cpu",
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How the log is written.")] = "text",
) -> None:
    """Answer approved studies until stopped; on SIGTERM it stops after the current request.

    Example: fedveil site serve site
    """
    from fedveil.deploy.identity import private_files
    from fedveil.deploy.records.refusals import keep_refusals
    from fedveil.deploy.site.listening import Listener
    from fedveil.deploy.site.offline import offline
    from fedveil.deploy.site.service import open_service
    from fedveil.privacy import Ledger

    with speak_plainly(), offline(), on_device(device), with_encoders_of(folder):
        log_to_stderr(log_format)
        config = load_site(folder)
        with private_files(), Ledger(folder / "ledger.jsonl") as ledger:
            keep_refusals(folder)
            service = open_service(folder, ledger)
            listener = Listener(
                config.address(), service.answer, limit=config.message_limit + 1024, group=config.site.group
            )
            listener.stop_on_signals()
            log = logging.getLogger("fedveil.site")
            log.info("%s listens at %s", config.site.name, config.address().where)
            service.resume()
            listener.serve()
            service.finish()
            log.info("stopped")


def site_connect(
    folder: Annotated[Path, typer.Argument(help="The node's folder, with its node.toml.")] = Path("node"),
) -> None:
    """Carry messages between the coordinator and this hospital's site service, until stopped.

    Example: fedveil site connect node
    """
    from fedveil.deploy.node import engine_of

    with speak_plainly():
        engine = engine_of(folder)
        need_engine(engine)
    os.execv(sys.executable, [sys.executable, "-m", f"fedveil.deploy.{engine}.node", str(folder)])
