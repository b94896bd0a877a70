"""The process in which an encoder from a file computes: it holds that file, one image, and nothing else.

A graph may come from anyone. Memory, processor time and open files of its process are limited by the kernel. Whatever
it does, it ends this process and no other.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import struct
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Device, use
from fedveil.learning.encoders.external.runner import load_runner, vectors
from fedveil.learning.encoders.external.spec import EncoderSpec

__all__ = [
    "FAILED",
    "FOUND",
    "NUMBER",
    "TOKEN",
    "close_files",
    "end_with",
    "limit",
    "serve",
    "start_processes",
]

FOUND, FAILED = b"\x00", b"\x01"
"""First byte of an answer: features follow, or an explanation."""
NUMBER = struct.Struct(">q")
TOKEN = 16
"""Bytes with which a question begins, and with which its answer must begin: no other question has the same."""
IDLE = 60
"""Seconds after which a process that is asked nothing ends and frees its memory."""


def start_processes(descriptor: int) -> None:
    """Fork this process, in which libraries are loaded, as often as the one at the other end asks.

    "+" comes with a socket: a new process will `serve` it, and its number is sent back. "-" and a number ask to wait
    for the end of that process and for its exit code.
    """
    line, own = socket.socket(fileno=descriptor), os.getpid()
    while True:
        asked, descriptors, _, _ = socket.recv_fds(line, 9, 1)
        if asked[:1] == b"+":
            number = os.fork()
            if not number:
                line.close()
                end_with(own)
                serve(descriptors[0])
                os._exit(0)
            os.close(descriptors[0])
            line.sendall(NUMBER.pack(number))
        elif asked[:1] == b"-":
            _, status = os.waitpid(NUMBER.unpack(asked[1:])[0], 0)
            line.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
        else:
            return


def end_with(parent: int) -> None:
    """End this process when the one ends that forked it and alone can end it safely, by its number."""
    with contextlib.suppress(AttributeError):  # there on Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def limit(memory: int) -> None:
    """Limit the address space to so many bytes, write no core file, and be what a kernel out of memory ends first."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold an image
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(OSError):  # there on Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def close_files() -> None:
    """Let this process open nothing from now on: no file, no connection, no program. What is open stays usable.

    Libraries open files when they first compute, so they compute something of ours first.
    """
    import resource

    with torch.inference_mode():
        some = torch.nn.functional.conv2d(torch.ones(1, 3, 32, 32), torch.ones(8, 3, 3, 3))
        some = torch.nn.functional.interpolate(some, (16, 16), mode="bilinear", antialias=True)
        torch.std_mean(torch.softmax(some.flatten(1) @ torch.ones(2048, 8), 1), dim=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def serve(descriptor: int) -> None:
    """Load the encoder that comes first on this connection, then answer one image at a time until it is closed."""
    line = Connection(descriptor)
    asked = json.loads(line.recv_bytes())
    content = line.recv_bytes()
    use(Device.of(asked["device"]))
    on_cpu = asked["device"] == "cpu"
    if on_cpu:  # a driver maps the memory of its device into the address space, and opens files at any time
        limit(asked["memory"] + 6 * len(content))
    torch.set_num_threads(1)
    spec = EncoderSpec.from_dict(asked["spec"])
    try:
        runner, _ = load_runner(content, spec)
    except InvalidValue as error:
        line.send_bytes(json.dumps([error.found, error.rule, error.remedy]).encode())
        return
    except Exception as error:  # noqa: BLE001 - whatever a file makes a library raise
        found = f"the encoder {spec.features} cannot be loaded ({type(error).__name__}: {error})"[:1000]
        rule = "a process loads it with limits on memory and time"
        line.send_bytes(json.dumps([found, rule, "use a smaller encoder, or export it again"]).encode())
        return
    del content
    if on_cpu:
        close_files()
    line.send_bytes(b"[]")
    function = vectors(runner, spec, asked["precision"])
    while True:
        signal.alarm(IDLE)  # ends this process
        try:
            image = line.recv_bytes()
        except EOFError:
            return
        signal.alarm(0)
        _allow(asked["seconds"])
        line.send_bytes(image[:TOKEN] + _answer(function, image[TOKEN:]))


def _answer(function: Any, asked: bytes) -> bytes:
    channels, height, width = np.frombuffer(asked, np.uint32, 3)
    pixels = np.frombuffer(asked, np.float32, offset=12).reshape(1, channels, height, width)
    try:
        with torch.inference_mode():
            found = function(torch.from_numpy(pixels.copy()))
        features: bytes = found.numpy().astype(np.float32).tobytes()
        return FOUND + features
    except Exception as error:  # noqa: BLE001 - an encoder may come from anyone, and fail on what it likes
        return FAILED + f"{type(error).__name__}: {error}"[:1000].encode(errors="replace")


def _allow(seconds: int) -> None:
    """So many more seconds of processor time, after which the kernel ends this process."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    until = math.ceil(time.process_time()) + seconds
    if most == resource.RLIM_INFINITY or until < most:
        resource.setrlimit(resource.RLIMIT_CPU, (until, most))
