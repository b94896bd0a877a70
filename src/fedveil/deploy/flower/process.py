"""The coordinator's SuperLink as a process: started, joined, started again when it died, ended when nobody uses it."""

import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from fedveil.deploy.flower import STANDING, USERS
from fedveil.deploy.flower.gate import PROOF_HEADER, proof_of
from fedveil.deploy.locks import is_locked, locked_alone, release, shared, turn
from fedveil.errors import FederationError, InvalidValue

__all__ = ["LinkSettings", "SuperLink", "serve"]

log = logging.getLogger("fedveil.coordinator")

_START_SECONDS = 90.0
_CONTROL = "/v1/control/list-nodes"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """The SuperLink's address and files, all in the coordinator's folder.

    Attributes:
        folder: holds ca.pem, superlink.pem, superlink.key, superlink.secret and nodes/; superlink.db and superlink.log
            are written there.
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

    @property
    def proof(self) -> str:
        """What this coordinator sends with each call to the SuperLink."""
        return proof_of(self.file("superlink.secret").read_bytes())

    @property
    def users(self) -> Path:
        """Locked by every coordinator that runs."""
        return self.folder / "superlink.users"

    @property
    def standing(self) -> Path:
        """Locked by a standing SuperLink."""
        return self.folder / "superlink.standing"

    @property
    def turn(self) -> Path:
        """Locked by the coordinator that starts a SuperLink, registers nodes or begins a run."""
        return self.folder / "superlink.turn"

    def command(self) -> list[str]:
        """The program that is this SuperLink."""
        return [
            sys.executable,
            *("-m", "fedveil.deploy.flower.superlink", str(self.folder)),
            *("--isolation", "process", "--enable-supernode-auth"),
            *("--superexec-auth-secret-file", str(self.file("superlink.secret"))),
            *("--host", self.host, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.file("ca.pem"))),
            *("--ssl-certfile", str(self.file("superlink.pem"))),
            *("--ssl-keyfile", str(self.file("superlink.key"))),
            *("--database", str(self.folder / "superlink.db")),
        ]

    def environment(self) -> dict[str, str]:
        """The environment of every Flower process: no telemetry, no update check, files below the folder."""
        return {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": str(self.folder / "flower"),
        }


class SuperLink:
    """A coordinator's use of the SuperLink of its folder; several coordinators may use one.

    Args:
        settings: its address and files.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._using: int | None = None
        self._standing = False

    def open(self) -> None:
        """Start it, unless it runs already, and check that strangers do not reach its control interface.

        Raises:
            FederationError: it does not start, or what answers at its port has no such rule.
        """
        self._using = shared(self._settings.users)
        self.ensure()
        self._wait_for_standing()
        _check_closed(self._settings)

    def _wait_for_standing(self) -> None:
        """A standing SuperLink holds its lock from its first moment, and answers some seconds later."""
        settings, until = self._settings, time.monotonic() + self._settings.patience
        while not _answers(settings.port):
            if time.monotonic() > until:
                raise FederationError(
                    f"the standing SuperLink at {settings.local} did not answer for {settings.patience:.0f} s",
                    "a study uses the standing SuperLink and starts no other beside it",
                    "see the log of `fedveil federation serve`, or stop it",
                )
            time.sleep(0.1)
            self.ensure()

    def ensure(self) -> None:
        """Start it if nothing answers at its port. A standing one is left to the program that keeps it running."""
        with turn(self._settings.turn):
            self._standing = self._standing or is_locked(self._settings.standing)
            if _answers(self._settings.port):
                if self._process is None:
                    log.info("joining the SuperLink at %s", self._settings.local)
            elif self._standing:
                log.warning("the standing SuperLink at %s does not answer", self._settings.local)
            else:
                if self._process is not None:
                    log.warning("the SuperLink ended (%s); starting it again", self._process.poll())
                self._start()

    def close(self) -> None:
        """Stop using it; it ends if this process started it and nobody else uses it."""
        if self._using is None:
            return
        release(self._using)
        self._using = None
        alone = locked_alone(self._settings.users)
        if alone is None:
            return
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        release(alone)

    def _start(self) -> None:
        settings = self._settings
        with (settings.folder / "superlink.log").open("ab") as output:
            self._process = subprocess.Popen(
                settings.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**settings.environment(), USERS: str(settings.users)},
                start_new_session=True,
            )
        until = time.monotonic() + _START_SECONDS
        while not _answers(settings.port):
            if self._process.poll() is not None or time.monotonic() > until:
                raise FederationError(
                    f"the SuperLink did not start on port {settings.port}",
                    "its port must be free and its certificates valid",
                    f"see {settings.folder / 'superlink.log'}",
                )
            time.sleep(0.1)


def serve(settings: LinkSettings) -> None:
    """Become a standing SuperLink: this process runs it until it is told to stop, whoever comes and goes.

    Raises:
        FederationError: a SuperLink, or something else, has the port.
        InvalidValue: its certificate or its address cannot be used.
    """
    command = settings.command()
    _check_certificate(settings)
    with turn(settings.turn):
        held = locked_alone(settings.standing)
        if held is None:
            raise FederationError(
                f"a standing SuperLink serves {settings.folder} already",
                "one serves all studies of a federation",
                "use it, or stop it first",
            )
        try:
            _check_free(settings)
        except BaseException:
            release(held)
            raise
    # The lock is held from here on, also while the program that follows is still being loaded: a coordinator that
    # starts in between waits for it.
    os.set_inheritable(held, True)
    os.execve(command[0], command, {**settings.environment(), STANDING: str(held)})


def _check_certificate(settings: LinkSettings) -> None:
    certificate, key = settings.file("superlink.pem"), settings.file("superlink.key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidValue(
            f"{certificate} with {key.name} cannot be used ({error})",
            "a SuperLink needs its certificate and the private key of it",
            "restore both files from a copy of the folder",
        ) from None


def _check_free(settings: LinkSettings) -> None:
    """Listen at the address for a moment, as the SuperLink will."""
    if _answers(settings.port):
        raise FederationError(
            f"port {settings.port} is in use",
            "a study that began without a standing SuperLink keeps its own until it ends",
            "wait for that study, or choose another port in federation.toml and in every node.toml",
        )
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
            probe.listen()
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"nothing can listen at {settings.host} port {settings.port} ({error})",
            "the address must be one of this machine's, and the port free",
            "correct listen or the port in federation.toml, or stop the program that uses the port",
        ) from None


def _check_closed(settings: LinkSettings) -> None:
    """Prove that the control interface refuses callers without the secret, wherever they call from."""
    context = ssl.create_default_context(cafile=str(settings.file("ca.pem")))
    with httpx.Client(
        verify=context, base_url=f"https://{settings.local}", trust_env=False, timeout=30
    ) as client:
        for headers in ({}, {PROOF_HEADER: "0" * 64}):
            found = client.post(_CONTROL, headers={"content-type": "application/x-protobuf", **headers})
            if found.status_code != httpx.codes.FORBIDDEN:
                raise FederationError(
                    f"the SuperLink at {settings.local} answers its control interface to callers without its secret "
                    f"({found.status_code})",
                    "it must be fedveil's, which serves them the nodes' calls only",
                    "stop the program that uses the port; use `fedveil federation serve`, not flower-superlink",
                )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
