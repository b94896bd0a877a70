"""A trained model as a MONAI bundle: a folder of weights and metadata (MONAI Bundle Specification).

Weights are a state dictionary, ``models/model.pt``, and a TorchScript program, ``models/model.ts``, which holds
encoder and head together and needs no code of fedveil. MONAI itself is not needed to write a bundle.
"""

import io
import json
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.errors import StudyError
from fedveil.io import write_atomic
from fedveil.learning.encoders import PRECOMPUTED
from fedveil.report.exports import check_targets
from fedveil.report.exports.card import UNKNOWN, model_card
from fedveil.report.exports.graph import OUTPUT, TOLERANCE, as_module, example, facts, quiet
from fedveil.report.records import RunRecord
from fedveil.study import TrainedModel

__all__ = ["write_bundle"]

MONAI = "1.4.0"
"""The version of MONAI whose specification the folder follows."""


def write_bundle(model: TrainedModel, record: RunRecord, folder: Path) -> Path:
    """Write ``configs/``, ``models/`` and ``docs/``, after comparing the program's probabilities with the model's.

    Raises:
        InvalidValue: the encoder cannot be exported.
        StudyError: the folder exists, or the program computes something else.
    """
    check_targets(folder)
    weights, program = _models(model)
    written = {
        "configs/metadata.json": _json(_metadata(model, record)),
        "configs/inference.json": _json(_inference(model)),
        "models/model.pt": weights,
        "models/model.ts": program,
        "docs/README.md": model_card(record, model).encode(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        whole = Path(beside) / "bundle"
        for name, content in written.items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(whole / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        whole.rename(folder)
    return folder


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _models(model: TrainedModel) -> tuple[bytes, bytes]:
    """The state dictionary and the TorchScript program."""
    import torch

    module, weights, program = as_module(model), io.BytesIO(), io.BytesIO()
    torch.save(module.state_dict(), weights)
    with quiet(), torch.inference_mode():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            module, torch.from_numpy(example(model)), check_trace=False
        )
        torch.jit.save(traced, program)
        found = traced(torch.from_numpy(example(model, 3))).numpy()
    worst = float(np.abs(found - model.probabilities(example(model, 3))).max())
    if not worst <= TOLERANCE:
        raise StudyError(
            f"the exported program differs from the model by {worst:.2g}",
            f"probabilities must agree to {TOLERANCE:g}",
            "use `fedveil predict`, and report this as a fault",
        )
    return weights.getvalue(), _without_sources(program)


def _without_sources(program: io.BytesIO) -> bytes:
    """A TorchScript program without the names of source files, which hold paths of this machine."""
    kept = io.BytesIO()
    with zipfile.ZipFile(program) as given, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as made:
        for entry in given.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                made.writestr(entry, given.read(entry))
    return kept.getvalue()


def _metadata(model: TrainedModel, record: RunRecord) -> dict[str, Any]:
    stated = dict(record.governance)
    made = record.provenance.fedveil or version("fedveil")
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by fedveil {version('fedveil')} from a run of fedveil {made}"},
        "monai_version": MONAI,
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "optional_packages_version": {},
        "required_packages_version": {},
        "name": record.study,
        "task": f"classification of images: {', '.join(model.classes)}",
        "description": record.description or UNKNOWN,
        "authors": stated.get("Controllers", UNKNOWN),
        "copyright": UNKNOWN,
        "intended_use": stated.get("Purpose", UNKNOWN),
        "data_type": "image" if model.features != PRECOMPUTED else "embedding",
        "network_data_format": {"inputs": {"image": _input(model)}, "outputs": {"pred": _output(model)}},
        "fedveil": facts(model) | {"result_sha256": record.digest},
    }


def _input(model: TrainedModel) -> dict[str, Any]:
    if model.features == PRECOMPUTED and model.network == "linear":
        shape, kind, ends = [model.extractor.dimension], "tuples", []
    else:
        shape, kind, ends = [model.image_size] * 2, "image", [0, 1]
    return {
        "type": kind,
        "format": "magnitude" if kind == "image" else "latent",
        "modality": "n/a",
        "num_channels": model.channels if kind == "image" else 1,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": ends,
        "is_patch_data": False,
        "channel_def": {str(one): "image" for one in range(model.channels)},
    }


def _output(model: TrainedModel) -> dict[str, Any]:
    return {
        "type": OUTPUT,
        "format": "classes",
        "modality": "n/a",
        "num_channels": len(model.classes),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(number): name for number, name in enumerate(model.classes)},
    }


def _inference(model: TrainedModel) -> dict[str, Any]:
    """A configuration by which MONAI loads the program; images come prepared as `metadata.json` states."""
    return {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "imports": ["$import torch"],
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "inferer": {"_target_": "SimpleInferer"},
        "classes": list(model.classes),
    }
