"""What fedveil uses of NVFlare beyond its documentation: a version that moves a name or a hook is told by it."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="fedveil[nvflare] is not installed")

from nvflare.fuel.f3.cellnet import core_cell
from nvflare.fuel.f3.drivers import grpc_driver
from nvflare.fuel.f3.sfm import conn_manager, heartbeat_monitor
from nvflare.fuel.f3.sfm.constants import Types
from nvflare.fuel.f3.sfm.prefix import PREFIX_LEN, Prefix

from fedveil.cli import engines
from fedveil.deploy.nvflare import VERSIONS, private
from fedveil.errors import InvalidValue

SOURCE = Path(inspect.getfile(private)).parents[2]
NAMES = [
    (item.module, name.name)
    for item in ast.walk(ast.parse(Path(inspect.getfile(private)).read_text()))
    if isinstance(item, ast.ImportFrom) and item.module and item.module.startswith("nvflare")
    for name in item.names
]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda one: one)
def test_nvflare_still_has_this_name(module, name):
    assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_nothing_else_imports_nvflare():
    found = re.compile(r"^\s*(import|from) nvflare", re.M)
    assert [path for path in SOURCE.rglob("*.py") if found.search(path.read_text())] == [
        Path(inspect.getfile(private))
    ]
    assert len(NAMES) > 10


def test_the_checks_are_where_nvflare_looks_for_them():
    """Each frame passes through the manager's method, and each message through the receiver's."""
    manager = conn_manager.ConnManager
    assert "self.conn_manager.process_frame(self.conn, frame)" in inspect.getsource(
        conn_manager.SfmFrameReceiver.process_frame
    )
    task = inspect.getsource(manager.process_frame_task)
    assert "receiver.process_message(sfm_conn.sfm_endpoint.endpoint, sfm_conn.conn" in task
    assert "self.update_endpoint(sfm_conn, data)" in task
    assert "self.process_frame_task, sfm_conn, frame" in inspect.getsource(manager.process_frame)
    assert "require_match(endpoint_name, peer_cn" in inspect.getsource(manager.update_endpoint)
    assert "self.identity_resolver.require_match(" in inspect.getsource(manager.update_endpoint)
    assert "StreamConnection(oq, self.server" in inspect.getsource(grpc_driver.Servicer.Stream)
    assert grpc_driver.StreamConnection is private._Connection
    assert "receiver=self" in inspect.getsource(core_cell.CoreCell.__init__)


def test_the_settings_are_where_nvflare_looks_for_them():
    assert "wait > MAX_WAIT" in inspect.getsource(conn_manager.ConnManager.start_connector_task)
    driver = inspect.getsource(grpc_driver.GrpcDriver.__init__)
    assert all(f'"{name}"' in driver for name in ("grpc", "max_workers", "options"))
    code = "from fedveil.deploy.nvflare.private import CommConfigurator as configurator; "
    code += "configurator._configuration, configurator._config_loaded = {'heartbeat_interval': 7}, True; "
    code += "from nvflare.fuel.f3.sfm.heartbeat_monitor import HeartbeatMonitor; print(HeartbeatMonitor({}).interval)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7"
    assert heartbeat_monitor.HEARTBEAT_TICK <= private._HEARTBEAT


def test_the_installed_version_is_one_that_the_tests_ran_with():
    installed = tuple(int(part) for part in version("nvflare").split(".")[:2])
    assert VERSIONS[0] <= installed <= VERSIONS[1]


@pytest.mark.parametrize("found", ["2.8.1", "2.10.0", "3.0", "not installed"])
def test_other_versions_are_refused(found, monkeypatch):
    monkeypatch.setattr(engines, "version", lambda _: found)
    with pytest.raises(InvalidValue, match=r"NVFlare is .*carried by NVFlare 2\.9:"):
        engines.need_engine("nvflare")


def test_the_tested_version_is_accepted(monkeypatch):
    monkeypatch.setattr(engines, "version", lambda _: "2.9.3")
    engines.need_engine("nvflare")


def test_the_node_loads_one_driver_and_nothing_that_runs_jobs():
    """No Flower, no web server, no learner; of NVFlare's drivers only the one for gRPC."""
    others = "flwr", "torch", "flask", "docker", "gunicorn", "aiohttp", "nvflare.fuel.f3.drivers.file_driver"
    code = f"import sys, fedveil.deploy.nvflare.node; print([one for one in {others} if one in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_flower_is_needed():
    """Neither at the coordinator nor at a hospital, where only the extra for NVFlare is installed."""
    code = "import sys; sys.modules.update(dict.fromkeys(('flwr', 'httpx', 'uvicorn', 'starlette'))); "
    code += "from fedveil.cli.engines import need_engine; need_engine('nvflare'); "
    code += (
        "import fedveil.cli.deploy, fedveil.deploy.coordinator.runner, fedveil.deploy.coordinator.planning, "
    )
    code += "fedveil.deploy.nvflare.carrier, fedveil.deploy.nvflare.node, fedveil.deploy.provisioning.kits"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_greeting_is_read_before_the_message_that_follows_it():
    """On one thread; a message on another could come first, and be lost."""
    order = []
    manager = SimpleNamespace(
        process_frame=lambda *one: order.append("queued"),
        process_frame_task=lambda *one: order.append("read"),
    )
    resolver = SimpleNamespace(require_match=None)
    core = SimpleNamespace(communicator=SimpleNamespace(conn_manager=manager), identity_resolver=resolver)
    private.guard(core, admits=lambda connection, frame: connection.good, hear=None, forged=None)
    closed = []
    line = SimpleNamespace(good=True, conn=SimpleNamespace(close=lambda: closed.append(1)))
    for kind in (Types.READY, Types.DATA, Types.PING):
        frame = bytearray(PREFIX_LEN)
        Prefix(PREFIX_LEN, 0, kind).to_buffer(frame, 0)
        manager.process_frame(line, bytes(frame))
    assert (order, closed) == (["read", "queued", "read"], [])
    line.good = False
    manager.process_frame(line, bytes(frame))
    assert (len(order), closed) == (3, [1])
