"""Every name of Flower that fedveil uses and Flower does not document: a version that moves one is told by its name."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import Message
from tests.deploy.test_records import run_identity  # noqa: F401

from fedveil.cli import engines as check
from fedveil.deploy.flower import VERSIONS, private
from fedveil.deploy.flower.private import coordinator, node, superlink
from fedveil.deploy.flower.records import content_of
from fedveil.errors import InvalidValue

SOURCE = Path(inspect.getfile(private)).parents[3]


def imported(path: Path) -> list[tuple[str, str]]:
    """The modules of Flower that a file imports from, with each name."""
    found = [item for item in ast.walk(ast.parse(path.read_text())) if isinstance(item, ast.ImportFrom)]
    return [
        (item.module, name.name)
        for item in found
        if item.module and item.module.partition(".")[0] == "flwr"
        for name in item.names
    ]


NAMES = [
    (path.stem, module, name)
    for path in sorted(Path(inspect.getfile(private)).parent.glob("*.py"))
    for module, name in imported(path)
]


@pytest.mark.parametrize(("program", "module", "name"), NAMES, ids=lambda one: one)
def test_flower_still_has_this_name(program, module, name):
    assert hasattr(importlib.import_module(module), name), f"{program} uses {module}.{name}"


def test_nothing_else_imports_what_flower_does_not_document():
    elsewhere = {
        f"{path.relative_to(SOURCE)}: {module}.{name}"
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "private"
        for module, name in imported(path)
        if module != "flwr.app"
    }
    plain = [path for path in SOURCE.rglob("*.py") if re.search(r"^\s*import flwr", path.read_text(), re.M)]
    assert len(NAMES) > 40
    assert not elsewhere
    assert not plain


def test_the_attributes_that_fedveil_sets_are_still_read(run_identity):  # noqa: F811
    """A grid calls through its client and knows its run and node; a message's id is where it was."""
    grid = coordinator.HttpGrid("127.0.0.1:1", False, None, token="token")
    assert grid._client is None
    grid._client = calls = object()
    assert grid._runtime_client is calls
    assert "self._run" in inspect.getsource(coordinator.HttpGrid.pull_messages)
    assert hasattr(grid, "node")
    assert "retry_invoker" in inspect.signature(coordinator.RuntimeHttpClient.from_server_address).parameters
    message = Message(content_of(b"x"), dst_node_id=1, message_type="query")
    message.metadata.__dict__["_message_id"] = "name"
    assert message.metadata.message_id == "name"
    assert message.object_id
    assert node.remove_content_from_message(message).metadata.message_id == "name"


def test_flower_builds_its_middleware_from_the_hook_and_runs_it_with_uvicorn():
    main = importlib.import_module("flwr.superlink.main")
    order = main._get_middleware()
    assert main.extensions is superlink.extensions
    assert len(order) > 3
    program = sys.modules[superlink.flower_superlink.__module__]
    assert "uvicorn.run(" in inspect.getsource(program)


@pytest.mark.parametrize("found", ["1.40.9", "1.43.0", "2.0", "0.9", "not installed"])
def test_other_versions_of_flower_are_refused(found, monkeypatch):
    monkeypatch.setattr(check, "version", lambda _: found)
    with pytest.raises(InvalidValue, match=r"carried by Flower 1\.41 to 1\.42"):
        check.need_flower()


@pytest.mark.parametrize("found", ["1.41.0", "1.41.7", "1.42.0"])
def test_the_tested_versions_are_accepted(found, monkeypatch):
    monkeypatch.setattr(check, "version", lambda _: found)
    check.need_flower()


def test_the_installed_version_is_one_of_them():
    installed = tuple(int(part) for part in version("flwr").split(".")[:2])
    assert VERSIONS[0] <= installed <= VERSIONS[1]


def test_the_node_loads_nothing_of_the_superlink():
    """Its memory is a hospital's; the web server and the database are the coordinator's."""
    code = "import sys, warnings; warnings.simplefilter('ignore'); import fedveil.deploy.flower.node; "
    code += "print([name for name in ('uvicorn', 'flwr.superlink.main', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
