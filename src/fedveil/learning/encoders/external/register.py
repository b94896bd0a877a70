"""Taking an encoder in: its file is examined, in a process with limits, and stored under its hash."""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedveil.data.phantom.patients import phantom
from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Device, current, use
from fedveil.learning.encoders.external.confined import limit
from fedveil.learning.encoders.external.processes import MEMORY
from fedveil.learning.encoders.external.runner import AT_ONCE, load_runner, pooled_lengths, vectors
from fedveil.learning.encoders.external.spec import EncoderSpec
from fedveil.learning.encoders.external.store import Store, read_limited
from fedveil.learning.encoders.external.timm_module import cached_weights
from fedveil.learning.encoders.extractor import Features, Images, in_batches

__all__ = ["Report", "examine", "examine_file", "register", "verify"]

SECONDS = 600
"""The longest time that an examination may take."""


@dataclass(frozen=True, slots=True)
class Report:
    """What running an encoder on synthetic images showed.

    Attributes:
        dimension: number of features.
        seconds_per_image: on one core.
        repeatable: whether an image's features are the same bit for bit when computed again.
    """

    dimension: int
    seconds_per_image: float
    repeatable: bool


def register(
    spec: EncoderSpec, base: Path = Path(), weights: Path | None = None, store: Store | None = None
) -> tuple[EncoderSpec, Report]:
    """`examine_file`, and store the file that was examined.

    Args:
        spec: what is named; for ONNX graphs and exported programs ``name`` is a path.
        base: where relative paths start.
        weights: the file of a timm network's weights; by default timm's cache.
        store: where it is stored.

    Raises:
        InvalidValue: it is missing, is not acceptable, or is not what the spec states.
    """
    content, found, report = _examined(spec, base, weights)
    (store or Store()).add(content)
    return found, report


def examine_file(
    spec: EncoderSpec, base: Path = Path(), weights: Path | None = None
) -> tuple[EncoderSpec, Report]:
    """Examine the encoder that a person names, in a process with limits; returns its pinned spec."""
    return _examined(spec, base, weights)[1:]


def _examined(spec: EncoderSpec, base: Path, weights: Path | None) -> tuple[bytes, EncoderSpec, Report]:
    path = base / (weights or spec.name)
    if spec.kind == "timm" and weights is None:
        path = cached_weights(spec.name)
    content = read_limited(path)
    digest = hashlib.sha256(content).hexdigest()
    if spec.sha256 and spec.sha256 != digest:
        raise InvalidValue(
            f"{path} has the SHA-256 {digest}", f"the study names {spec.sha256}", "get the file that it names"
        )
    named = spec if spec.kind == "timm" else replace(spec, name=path.name)
    found, report = _examine_apart(content, replace(named, sha256=digest))
    return content, found, report


def verify(spec: EncoderSpec, store: Store | None = None) -> Report:
    """Run the stored encoder of a pinned spec on synthetic images, as the spec prepares and pools them.

    Raises:
        InvalidValue: it is not stored here, was altered, or is not what the spec states.
    """
    content = (store or Store()).read(spec.sha256, spec.features)
    return _examine_apart(content, spec)[1]


def examine(content: bytes, spec: EncoderSpec) -> tuple[EncoderSpec, Report]:
    """Load an encoder, run it on synthetic images, and complete its spec; nothing is stored.

    Raises:
        InvalidValue: it cannot be loaded, fails, returns the wrong shape or numbers that are not finite, or returns
            other features when it is called again.
    """
    runner, spec = load_runner(content, spec)
    spec = spec.with_defaults(prefix=1)
    images = _trial_images(int(spec.input_channels or 1), int(spec.input_size or 1))
    try:
        with torch.inference_mode():
            shape = runner(torch.from_numpy(images[:1]))
        if shape.shape[0] != 1:
            raise _bad(spec, f"returns the shape {tuple(shape.shape)} for one image")
        stated, lengths = spec.lengths, pooled_lengths(shape, spec.pooling, spec.prefix or 0)
        if stated and stated != lengths:
            raise _bad(spec, f"returns features of the lengths {lengths}, and the study states {stated}")
        spec = replace(spec, lengths=lengths)
        features, seconds = _timed(runner, spec, images)
        again = np.concatenate([_timed(runner, spec, one[None])[0] for one in images[::-1]])[::-1]
    except InvalidValue:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a graph makes its runtime raise
        raise _bad(spec, f"fails on an image ({type(error).__name__}: {error})") from None
    if not (np.isfinite(features).all() and np.isfinite(again).all()):
        raise _bad(spec, "returns numbers that are not finite for ordinary images")
    repeatable = bool(np.array_equal(features, again))
    if not np.allclose(features, again, rtol=1e-3, atol=1e-4 * float(np.abs(features).max() + 1e-6)):
        raise _bad(
            spec, "returns other features for the same image when it is called again, or with other images"
        )
    return spec, Report(spec.dimension, seconds, repeatable)


def _timed(runner: Any, spec: EncoderSpec, images: Images) -> tuple[Features, float]:
    start = time.perf_counter()
    found = in_batches(vectors(runner, spec), torch.from_numpy(images), spec.dimension, AT_ONCE)
    return found, (time.perf_counter() - start) / len(images)


def _trial_images(channels: int, size: int) -> Images:
    """Synthetic images that differ: phantoms, noise, black and white."""
    drawn = phantom(min(size, 64), patients=6, seed=2).images
    few = np.repeat(drawn.read(np.arange(min(5, len(drawn)))), channels, axis=1)
    resized = torch.nn.functional.interpolate(torch.from_numpy(few), (size, size), mode="bilinear").numpy()
    noise = np.random.default_rng(0).random((1, channels, size, size), dtype=np.float32)
    return np.concatenate([noise, resized, np.zeros_like(noise), np.ones_like(noise)])


def _examine_apart(content: bytes, spec: EncoderSpec) -> tuple[EncoderSpec, Report]:
    """`examine` in a process of its own, with limits on memory and time: the file may come from anyone."""
    command = [sys.executable, "-P", "-c", f"from {__name__} import _child; _child()"]
    asked = json.dumps([spec.to_dict(), str(current().torch)]).encode() + b"\n" + content
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _bad(spec, f"took more than {SECONDS} s to load and to run on eight images") from None
    try:
        said = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise _bad(
            spec, f"ended the process that examined it, code {done.returncode} ({''.join(last)[:300]})"
        ) from None
    if "error" in said:
        raise InvalidValue(*said["error"])
    return EncoderSpec.from_dict(said["spec"]), Report(**said["report"])


def _child() -> None:
    """Read a spec and a file from standard input, write what `examine` finds, under limits."""
    import resource
    import warnings

    stated, device = json.loads(sys.stdin.buffer.readline())
    spec = EncoderSpec.from_dict(stated)
    content = sys.stdin.buffer.read()
    use(Device.of(device))
    if device == "cpu":
        limit(MEMORY + 6 * len(content))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        found, report = examine(content, spec)
        said: dict[str, Any] = {"spec": found.to_dict(), "report": asdict(report)}
    except InvalidValue as error:
        said = {"error": [error.found, error.rule, error.remedy]}
    print(json.dumps(said))


def _bad(spec: EncoderSpec, why: str) -> InvalidValue:
    return InvalidValue(
        f"the encoder {spec.features} {why}"[:600],
        "features must be finite, of one length, and depend on the image alone",
        "export it in evaluation mode, or choose another encoder",
    )
