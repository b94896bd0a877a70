"""The app that a Flower run has to name. It holds no code: no party of a federation runs code that it was sent."""

__all__ = ["app_files"]

_PROJECT = b"""[project]
name = "fedveil-nothing"
version = "1.0.0"
description = "A run of fedveil: messages only, no code"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]
[tool.flwr.app]
publisher = "fedveil"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "nothing:app"
clientapp = "nothing:app"
[tool.flwr.app.config]
"""


def app_files() -> dict[str, bytes]:
    """The files of an app without code, by path; Flower builds the app of a run from them."""
    return {"pyproject.toml": _PROJECT, "nothing.py": b"app = None\n", "LICENSE": b"Apache-2.0\n"}
