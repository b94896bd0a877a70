"""Encoders from files, each computing in processes of its own, so that no file can end or slow the one that asks."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import weakref
from multiprocessing import Pipe

import joblib
import numpy as np
import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Device, Precision
from fedveil.learning.encoders.external import confined
from fedveil.learning.encoders.external.spec import EncoderSpec
from fedveil.learning.encoders.external.store import Store
from fedveil.learning.encoders.extractor import Features, Images

__all__ = ["Failed", "Processes"]

MEMORY = 12 * 2**30
"""Bytes of address space of one process, beside six times the file."""
SECONDS = 120
"""Processor time that one image may take. This alone decides that it takes too long."""
WALL_SECONDS = 3600
"""Time that may pass meanwhile: more is a failure of this machine, which says nothing about the image."""
START_SECONDS = 600
MOST = 8
"""Processes at a time, and no more than there are processors for: each holds the weights."""
FROM_OUTSIDE = {-getattr(signal, f"SIG{name}") for name in ("KILL", "TERM", "INT", "HUP", "QUIT", "ALRM")}
"""Exit codes of processes that the machine ended, as its kernel does when memory is short, or that were idle."""
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Of a process: one thread, and memory that glibc keeps for the next image instead of taking it from the system anew,
which is a third of the time."""


class Failed(Exception):
    """An encoder has no features for an image."""


class _Ended(Failed):
    """The machine ended the process, or was too slow for it: nothing is known about the image."""


class Processes:
    """Features of one image after another, computed by as many processes as threads ask at a time.

    **An image counts as failed only when a process that was started for it failed on it.** So what becomes of an image
    depends neither on what images before it left behind nor on how long a process was idle. Where such a process is
    ended by the machine, there are no features of any image.

    Args:
        spec: pinned; its file is read from the store whenever a process starts.
        precision: of the encoder.
        device: where it runs; on another device than the CPU there is one process, and no limit on memory and files.
    """

    def __init__(self, spec: EncoderSpec, precision: Precision, device: Device) -> None:
        self._spec, self._precision, self._device = spec, precision, device
        places = min(MOST, joblib.cpu_count()) if device.torch.type == "cpu" else 1
        self._room = threading.BoundedSemaphore(places)
        self._free: list[_Process] = []
        weakref.finalize(self, _end, self._free)

    def check(self) -> None:
        """Have a process that holds the encoder.

        Raises:
            InvalidValue: the encoder is not registered here, was altered, or cannot be loaded.
        """
        with self._room:
            process = self._taken()
            if process is not None and process.has_ended:
                process.end()
                process = None
            self._free.append(process or self._started())

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (1, channels, h, w) in [0, 1] to features (1, dimension).

        Raises:
            Failed: there are none; the message says why.
            InvalidValue: no process can be started, or this machine ended it.
        """
        with self._room:
            process = self._taken()
            if process is not None:
                with contextlib.suppress(Failed):
                    return self._asked(process, image)
            try:
                return self._asked(self._started(), image)
            except _Ended as error:
                raise InvalidValue(
                    f"the encoder {self._spec.features} did not finish on this machine ({error})",
                    "an image's features must not depend on what else the machine does",
                    "see whether it has memory and processors left, then compute again",
                ) from None

    def _asked(self, process: "_Process", image: torch.Tensor) -> torch.Tensor:
        try:
            found = process.features(image.numpy())
        except BaseException:
            process.end()
            raise
        self._free.append(process)
        return torch.from_numpy(found)

    def _taken(self) -> "_Process | None":
        try:
            return self._free.pop()
        except IndexError:
            return None

    def _started(self) -> "_Process":
        content = Store().read(self._spec.sha256, self._spec.features)
        return _Process(self._spec, self._precision, self._device, content)


class _Process:
    """One process with the encoder loaded."""

    def __init__(self, spec: EncoderSpec, precision: Precision, device: Device, content: bytes) -> None:
        self._name, self._length = spec.features, spec.dimension
        self._late = False
        self._line, theirs = Pipe()
        with theirs:
            self._process = _nursery().forked(theirs.fileno())
        asked = {"spec": spec.to_dict(), "precision": precision, "device": str(device.torch)}
        hello = json.dumps(asked | {"memory": MEMORY, "seconds": SECONDS}).encode()
        try:
            said = _message(self._exchanged((hello, content), 10_000, START_SECONDS))
        except (Failed, ValueError, RecursionError) as error:
            self.end()
            raise InvalidValue(
                f"the encoder {self._name} cannot be loaded ({error})",
                "its process has limits on memory and time",
                "see whether this machine has memory left, or use a smaller encoder",
            ) from None
        except BaseException:
            self.end()
            raise
        if said:
            self.end()
            raise InvalidValue(*said)

    @property
    def has_ended(self) -> bool:
        """Whether it ended while nothing was asked, as it does when idle."""
        return self._line.poll()

    def features(self, image: Images) -> Features:
        """Features (1, dimension) of an image (1, channels, h, w)."""
        token = secrets.token_bytes(confined.TOKEN)
        shape = np.array(image.shape[1:], np.uint32).tobytes()
        longest = len(token) + max(4 * self._length, 4000) + 1
        answer = self._exchanged((token + shape + image.tobytes(),), longest, WALL_SECONDS)
        if answer[: len(token)] != token:
            raise Failed("it answered something else than it was asked")
        answer = answer[len(token) :]
        if answer[:1] != confined.FOUND:
            raise Failed(answer[1:].decode(errors="replace"))
        if len(answer) != 1 + 4 * self._length:
            raise Failed(f"it returned {len(answer) - 1:,} bytes for {self._length:,} features")
        return np.frombuffer(answer, np.float32, offset=1).reshape(1, -1).copy()

    def _exchanged(self, parts: tuple[bytes, ...], longest: int, seconds: float) -> bytes:
        """What it answers within the time; it is ended otherwise."""
        timer = threading.Timer(seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            for part in parts:
                self._line.send_bytes(part)
            return self._line.recv_bytes(longest)
        except (OSError, EOFError):
            raise self._failure(seconds, longest) from None
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def _failure(self, seconds: float, longest: int) -> Failed:
        is_long = not self._line.readable  # so a connection notes a message longer than was asked for
        self.end()
        code = self._process.code()
        if self._late:
            return _Ended(f"it took more than {seconds:g} s")
        if is_long:
            return Failed(f"it answered with more than {longest:,} bytes")
        if code == -signal.SIGXCPU:
            return Failed(f"it took more than {SECONDS} s of processor time")
        names = {-one: one.name for one in signal.Signals}
        name = names.get(code, f"the code {code}")
        return (_Ended if code in FROM_OUTSIDE else Failed)(f"its process ended with {name}")

    def end(self) -> None:
        """End the process: it has nothing to save."""
        self._line.close()
        self._process.kill()
        self._process.code()


def _message(said: bytes) -> list[str]:
    """Nothing, or the three parts of an error."""
    match json.loads(said):
        case []:
            return []
        case [str(found), str(rule), str(remedy)]:
            return [found, rule, remedy]
    raise ValueError("its process answered nothing that can be read")


class _Nursery:
    """A process with all libraries loaded, of which every other is forked: that takes milliseconds and shares memory.

    Forking is safe there, for it has one thread.
    """

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        self._lock = threading.Lock()
        command = f"from {confined.__name__} import start_processes; start_processes({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | ENVIRONMENT,
            )
        weakref.finalize(self, _stop, self._line, self._process)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def forked(self, descriptor: int) -> "_Forked":
        """A new process that serves this socket."""
        try:
            with self._lock:
                socket.send_fds(self._line, [b"+"], [descriptor])
                return _Forked(self, self._answer())
        except OSError as error:
            raise InvalidValue(
                f"no process can be started for the encoder ({error})",
                "an encoder from a file computes in a process of its own",
                "see whether this machine has memory left",
            ) from None

    def code(self, number: int) -> int:
        """Wait for the end of a process; its exit code."""
        with self._lock:
            self._line.sendall(b"-" + confined.NUMBER.pack(number))
            return self._answer()

    def _answer(self) -> int:
        answer = self._line.recv(confined.NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < confined.NUMBER.size:
            raise ConnectionError("the process that starts encoders ended")
        (number,) = confined.NUMBER.unpack(answer)
        return int(number)


class _Forked:
    """One process by its number, which stays taken until its exit code was asked for."""

    def __init__(self, nursery: _Nursery, number: int) -> None:
        self._nursery, self._number = nursery, number
        self._lock = threading.Lock()
        self._code: int | None = None

    def kill(self) -> None:
        """End it at once; its number is its own only as long as the process that started it has not ended."""
        with self._lock:
            if self._code is None and self._nursery.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._number, signal.SIGKILL)

    def code(self) -> int:
        """Its exit code, after `kill`, which changes nothing about a process that is ending by itself."""
        with self._lock:
            if self._code is None:
                try:
                    self._code = self._nursery.code(self._number)
                except OSError:
                    self._code = -signal.SIGKILL
            return self._code


_starting = threading.Lock()
_started: list[_Nursery] = []


def _nursery() -> _Nursery:
    with _starting:
        if not _started or not _started[-1].is_running:
            _started[:] = [_Nursery()]
        return _started[0]


def _stop(line: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    line.close()
    process.kill()
    process.wait()


def _end(processes: list[_Process]) -> None:
    while processes:
        processes.pop().end()
