"""A run on the coordinator's SuperLink that this process drives itself.

Flower would start the coordinator's program as a separate ServerApp. fedveil uses its existing process instead: it
starts a run, acquires the run's task with the secret that it shares with the SuperLink, and holds it by heartbeats.
So progress, Ctrl-C and ``--resume`` work as in a study on one machine."""

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from fedveil.deploy.flower.app import app_files
from fedveil.deploy.flower.gate import PROOF_HEADER
from fedveil.deploy.flower.private.coordinator import (
    AcquireTaskRequest,
    ControlHttpClient,
    Fab,
    HttpGrid,
    ListNodesRequest,
    ObjectPushError,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    RegisterNodeRequest,
    RetryInvoker,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    StartRunRequest,
    SuperExecAuthHttpInterceptor,
    TaskIdentity,
    TaskType,
    build_fab_from_files,
    exponential,
    run_from_proto,
)
from fedveil.deploy.flower.process import LinkSettings, SuperLink
from fedveil.deploy.flower.refusals import is_certificate
from fedveil.deploy.locks import turn
from fedveil.errors import FederationError

__all__ = ["Link"]

log = logging.getLogger("fedveil.coordinator")
logging.getLogger("flwr").setLevel(logging.WARNING)  # the import of flwr sets it to another value

T = TypeVar("T")
_HEARTBEAT = 8.0
_AWAY = (httpx.TransportError,)


class _Proof:
    """Shows the SuperLink's secret with each call; see `fedveil.deploy.flower.gate`."""

    def __init__(self, proof: str) -> None:
        self._proof = proof

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the header."""
        context.request.headers[PROOF_HEADER] = self._proof
        return call_next(context)


class Link:
    """A SuperLink and this process's run on it.

    Args:
        settings: the SuperLink's address and files.
        nodes: the public key (PEM) of each site's node, by the site's name.
    """

    def __init__(self, settings: LinkSettings, nodes: Mapping[str, bytes]) -> None:
        self._settings, self._nodes = settings, nodes
        self._superlink = SuperLink(settings)
        self._authority = settings.file("ca.pem").read_bytes()
        self._secret, self._proof = settings.file("superlink.secret").read_bytes(), _Proof(settings.proof)
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._grid: HttpGrid | None = None
        self._runtime: RuntimeHttpClient | None = None
        self._retry = _patient()

    def __enter__(self) -> "Link":
        try:
            self._superlink.open()
            self._register()
            self._grid = self._begin()
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
        """End the run; the SuperLink ends if this process started it and no other coordinator uses it."""
        self._closing.set()
        if self._runtime is not None:
            with contextlib.suppress(httpx.HTTPError):
                self._retry.max_tries = 1
                self._runtime.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
            self._runtime.close()
        self._superlink.close()

    def call(self, action: Callable[[HttpGrid], T]) -> T:
        """Call a function with the grid; a SuperLink that died is restarted, and a lost run is started again.

        Raises:
            FederationError: it does not answer within the settings' patience.
        """
        patience = self._settings.patience
        until = time.monotonic() + patience
        while True:
            try:
                if self._lost.is_set() or self._grid is None:
                    self._grid = self._begin()
                return action(self._grid)
            except httpx.HTTPStatusError as error:
                log.warning("the SuperLink ended the run (%s); starting another", error.response.status_code)
                self._lost.set()
            except ObjectPushError as error:
                log.warning("a message did not reach the SuperLink intact (%s)", error)
            except _AWAY as error:
                log.warning("no connection to the SuperLink (%s)", error)
                self._superlink.ensure()
            if time.monotonic() > until:
                raise FederationError(
                    f"the SuperLink at {self._settings.local} did not answer for {patience:.0f} s",
                    "every message passes through it",
                    "see superlink.log, then resume the study",
                )
            time.sleep(0.5)

    def _register(self) -> None:
        """Register the sites' nodes at the SuperLink; registered nodes keep their identity."""
        with turn(self._settings.turn), contextlib.closing(self._client(ControlHttpClient)) as control:
            known = {node.public_key for node in self._try(control.ListNodes, ListNodesRequest()).nodes_info}
            for site, key in self._nodes.items():
                if key not in known:
                    self._try(control.RegisterNode, RegisterNodeRequest(public_key=key, name=site))
                    log.info("registered the node of %s", site)

    def _begin(self) -> HttpGrid:
        """Start a run on the SuperLink and take its task; no other coordinator takes tasks meanwhile."""
        with turn(self._settings.turn):
            with contextlib.closing(self._client(ControlHttpClient)) as control:
                content, _ = build_fab_from_files(app_files())
                fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
                run_id = self._try(control.StartRun, StartRunRequest(fab=fab, federation="")).run_id
            token = self._acquire(run_id)
        if self._runtime is not None:
            self._runtime.close()
        client = self._client(RuntimeHttpClient, RuntimeTokenHttpInterceptor(token=token), retry=self._retry)
        grid = HttpGrid(self._settings.local, False, self._authority, token=token)
        grid._client = client  # Flower's own would lack the proof, and end this process on a 401
        task = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
        self._runtime = client
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

    def _client(self, kind: type[T], *interceptors: Any, retry: Any = None) -> T:
        make: Any = kind
        shown = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        client: T = make.from_server_address(
            self._settings.local,
            False,
            self._authority,
            interceptors=[shown, self._proof, *interceptors],
            retry_invoker=retry,
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
            runtime = self._runtime
            if runtime is None or self._lost.is_set():
                continue
            try:
                if not runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
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
