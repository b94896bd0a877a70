"""The client app for a hospital that prefers a stock ``flower-supernode`` to fedveil's own node: a thin
courier.

It hands each message's bytes to the hospital's site service and returns the answer's bytes. It imports no
numerical code, cannot read what it carries, and knows only what its surroundings tell it: the environment
variable ``FEDVEIL_SITE`` (``unix:PATH`` or ``tcp:127.0.0.1:PORT``) and, for TCP, ``FEDVEIL_TOKEN`` (a
file)."""

import os
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedveil.deploy.flower.records import bytes_of, content_of
from fedveil.deploy.local import Address, LineError, ask

__all__ = ["LONGEST_ANSWER", "app", "app_files"]

LONGEST_ANSWER = 2**31
_ONE_HOUR = 3600.0

app = ClientApp()


@app.query()
def carry(message: Message, _: Context) -> Message:
    """Hand a message to the site service and bring its answer back."""
    data = bytes_of(message)
    try:
        if data is None:
            raise LineError("the message carries no bytes")
        token = os.environ.get("FEDVEIL_TOKEN")
        address = Address.parse(os.environ.get("FEDVEIL_SITE", ""), Path(token) if token else None)
        answer = ask(address, data, timeout=_ONE_HOUR, limit=LONGEST_ANSWER)
    except (LineError, ValueError, OSError) as error:
        return Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(error)), reply_to=message)
    return Message(content_of(answer), reply_to=message)


def app_files() -> dict[str, bytes]:
    """The app that a run names: this courier, as installed at the hospital, and no code of its own."""
    project = """[project]
name = "fedveil-courier"
version = "1.0.0"
description = "Carries opaque bytes to a hospital's site service"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.42"]
[tool.flwr.app]
publisher = "fedveil"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "courier.app:app"
clientapp = "courier.app:app"
[tool.flwr.app.config]
"""
    return {
        "pyproject.toml": project.encode(),
        "courier/__init__.py": b"",
        "courier/app.py": b"from fedveil.deploy.flower.courier import app\n\n__all__ = ['app']\n",
        "LICENSE": b"Apache-2.0\n",
    }
