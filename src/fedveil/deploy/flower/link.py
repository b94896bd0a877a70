"""The coordinator's SuperLink: started or joined, and a run on it that this process drives itself.

Flower would start the coordinator's program as a separate ServerApp. fedveil uses its existing process instead: it
starts a run, acquires the run's task with the secret that it shares with the SuperLink, and holds it by heartbeats.
So progress, Ctrl-C and ``--resume`` work as in a study on one machine."""

import contextlib
import functools
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.superlink.grid import http_grid as flower_grid

from fedveil.deploy.flower import PARENT, SOON
from fedveil.deploy.flower.app import app_files
from fedveil.deploy.flower.refusals import is_certificate
from fedveil.errors import FederationError, InvalidValue

__all__ = ["Link", "LinkSettings", "flower_environment"]

log = logging.getLogger("fedveil.coordinator")
logging.getLogger("flwr").setLevel(logging.WARNING)  # the import of flwr sets it to another value
# Flower would wait for a second before it polls again for a part of an answer that is still being sent.
flower_grid.pull_objects = functools.partial(  # type: ignore[attr-defined]
    pull_objects, initial_backoff=SOON, backoff_cap=1.0
)

T = TypeVar("T")
_START_SECONDS = 90.0
_HEARTBEAT = 8.0
_AWAY = (httpx.TransportError,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """The SuperLink's address and files, all in the coordinator's folder.

    Attributes:
        folder: holds ca.pem, superlink.pem, superlink.key, superlink.secret, and receives superlink.db and .log.
        host: address that the SuperLink listens at.
        port: its port.
        patience: seconds to wait for a SuperLink that does not answer.
    """

    folder: Path
    host: str
    port: int
    patience: float = 300.0

    @property
    def local(self) -> str:
        """The SuperLink's address from this machine."""
        return f"127.0.0.1:{self.port}"

    def file(self, name: str) -> Path:
        """A file of the coordinator's folder; InvalidValue if it is missing."""
        path = self.folder / name
        if not path.exists():
            raise InvalidValue(
                f"{path} does not exist",
                "a SuperLink needs it",
                "use the folder that `fedveil federation init` wrote",
            )
        return path


def flower_environment(folder: Path) -> dict[str, str]:
    """The environment of every Flower process: no telemetry, no update check, files below ``folder``."""
    return {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(folder / "flower"),
    }


class Link:
    """A SuperLink and this process's run on it.

    Args:
        settings: the SuperLink's address and files.
        nodes: the public key (PEM) of each site's node, by the site's name.
    """

    def __init__(self, settings: LinkSettings, nodes: Mapping[str, bytes]) -> None:
        self._settings, self._nodes = settings, nodes
        self._process: subprocess.Popen[bytes] | None = None
        self._authority = settings.file("ca.pem").read_bytes()
        self._secret = settings.file("superlink.secret").read_bytes()
        self._closing = threading.Event()
        self._lost = threading.Event()
        self.grid: HttpGrid | None = None

    def __enter__(self) -> "Link":
        try:
            self._start()
            self._register()
            self.grid = self._begin()
        except BaseException as error:
            self.close()
            if isinstance(error, httpx.TransportError):
                raise self._stranger(error) from None
            raise
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the run; stop the SuperLink if this process started it."""
        self._closing.set()
        if self.grid is not None:
            with contextlib.suppress(httpx.HTTPError):
                self.grid._retry_invoker.max_tries = 1
                self.grid._runtime_client.PushTaskOutput(
                    PushTaskOutputRequest(sub_status="completed", details="")
                )
            self.grid.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def call(self, action: Callable[[HttpGrid], T]) -> T:
        """Call a function with the grid; a SuperLink that died is restarted, and a lost run is started again.

        Raises:
            FederationError: it does not answer within the settings' patience.
        """
        patience = self._settings.patience
        until = time.monotonic() + patience
        while True:
            try:
                if self._lost.is_set() or self.grid is None:
                    self.grid = self._begin()
                return action(self.grid)
            except httpx.HTTPStatusError as error:
                log.warning("the SuperLink ended the run (%s); starting another", error.response.status_code)
                self._lost.set()
            except ObjectPushError as error:
                log.warning("a message did not reach the SuperLink intact (%s)", error)
            except _AWAY as error:
                log.warning("no connection to the SuperLink (%s)", error)
                self._revive()
            if time.monotonic() > until:
                raise FederationError(
                    f"the SuperLink at {self._settings.local} did not answer for {patience:.0f} s",
                    "every message passes through it",
                    "see superlink.log, then resume the study",
                )
            time.sleep(0.5)

    def _start(self) -> None:
        """Start a SuperLink, unless one already answers."""
        if _answers(self._settings.port):
            log.info("joining the SuperLink at %s", self._settings.local)
            return
        folder = self._settings.folder
        command = [sys.executable, "-m", "fedveil.deploy.flower.superlink"]
        command += ["--isolation", "process", "--superexec-auth-secret-file"]
        command += [str(self._settings.file("superlink.secret"))]
        command += ["--host", self._settings.host, "--port", str(self._settings.port)]
        command += ["--ssl-ca-certfile", str(self._settings.file("ca.pem"))]
        command += ["--ssl-certfile", str(self._settings.file("superlink.pem"))]
        command += ["--ssl-keyfile", str(self._settings.file("superlink.key"))]
        command += ["--enable-supernode-auth", "--database", str(folder / "superlink.db")]
        with (folder / "superlink.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**flower_environment(folder), PARENT: str(os.getpid())},
                start_new_session=True,
            )
        until = time.monotonic() + _START_SECONDS
        while not _answers(self._settings.port):
            if self._process.poll() is not None or time.monotonic() > until:
                raise FederationError(
                    f"the SuperLink did not start on port {self._settings.port}",
                    "its port must be free and its certificates valid",
                    f"see {folder / 'superlink.log'}",
                )
            time.sleep(0.1)

    def _revive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            log.warning("the SuperLink ended (%s); starting it again", self._process.returncode)
            self._start()

    def _register(self) -> None:
        """Register the sites' nodes at the SuperLink; registered nodes keep their identity."""
        with contextlib.closing(self._client(ControlHttpClient)) as control:
            known = {node.public_key for node in self._try(control.ListNodes, ListNodesRequest()).nodes_info}
            for site, key in self._nodes.items():
                if key not in known:
                    self._try(control.RegisterNode, RegisterNodeRequest(public_key=key, name=site))
                    log.info("registered the node of %s", site)

    def _begin(self) -> HttpGrid:
        """Start a run on the SuperLink and take its task."""
        with contextlib.closing(self._client(ControlHttpClient)) as control:
            content, _ = build_fab_from_files(app_files())
            fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
            run_id = self._try(control.StartRun, StartRunRequest(fab=fab, federation="")).run_id
        token = self._acquire(run_id)
        grid = HttpGrid(self._settings.local, False, self._authority, token=token)
        grid._retry_invoker = _patient()
        task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
        self._lost.clear()
        return grid

    def _acquire(self, run_id: int) -> str:
        """The token of the run's task; tasks of a killed coordinator are skipped."""
        protect = SuperExecAuthHttpInterceptor(
            master_secret=self._secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        with contextlib.closing(self._client(RuntimeHttpClient, protect)) as runtime:
            request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            until = time.monotonic() + 30
            while time.monotonic() < until:
                answer = self._try(runtime.AcquireTask, request)
                if answer.token and answer.task.run_id == run_id:
                    return str(answer.token)
                if not answer.token:
                    time.sleep(0.2)
        raise FederationError(
            "the SuperLink does not assign the run",
            "the coordinator must drive its run itself",
            "stop any flower-superexec that is connected to this SuperLink",
        )

    def _client(self, kind: type[T], *interceptors: Any) -> T:
        make: Any = kind
        shown = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        client: T = make.from_server_address(
            self._settings.local, False, self._authority, interceptors=[shown, *interceptors]
        )
        return client

    def _try(self, method: Callable[[Any], T], request: Any) -> T:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise FederationError(
                f"the SuperLink refuses to {method.__name__} ({error.response.status_code})",
                "it must be the SuperLink of this federation, with the same secret and Flower version",
                "stop the program that uses the port, or choose another port in federation.toml",
            ) from None
        except httpx.TransportError as error:
            if is_certificate(error) or "SSL" in str(error).upper():
                raise self._stranger(error) from None
            raise

    def _stranger(self, error: Exception) -> FederationError:
        """The program on the port is not a SuperLink, or not this federation's."""
        return FederationError(
            f"the program at {self._settings.local} is not this federation's SuperLink "
            f"({str(error) or type(error).__name__})",
            "the port must be free, or used by a SuperLink with a certificate signed by ca.pem",
            "stop the program that uses the port, or choose another port in federation.toml and in every node.toml",
        )

    def _beat(self) -> None:
        """Hold the task, from a separate thread, for the duration of the study."""
        while not self._closing.wait(_HEARTBEAT):
            grid = self.grid
            if grid is None or self._lost.is_set():
                continue
            try:
                if not grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self._lost.set()
            except httpx.HTTPStatusError:
                self._lost.set()
            except httpx.HTTPError as error:
                log.debug("no heartbeat: %s", error)


def _patient() -> RetryInvoker:
    """A few quick retries; the link handles longer absences. Flower's own retries would end this process on a 401."""
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.2, max_delay=1),
        recoverable_exceptions=_AWAY,
        max_tries=3,
        max_time=None,
    )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
