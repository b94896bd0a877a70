"""What software is installed: versions, and a bill of materials in CycloneDX (ECMA-424)."""

import hashlib
import json
import platform
import re
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from typing import Any

from fedveil import __version__
from fedveil.installed import code_hash

__all__ = ["bill_of_materials", "versions"]


def versions() -> dict[str, str]:
    """Python and the packages that compute or protect something."""
    installed = {_name(one): one.version for one in distributions()}
    named = (
        "numpy",
        "scipy",
        "torch",
        "dp-accounting",
        "randomgen",
        "cryptography",
        "flwr",
        "nvflare",
        "pillow",
        "pydicom",
    )
    return {"fedveil": __version__, "python": platform.python_version()} | {
        name: installed[name] for name in named if name in installed
    }


def bill_of_materials() -> dict[str, Any]:
    """Every installed package as a CycloneDX 1.6 document; the hash is that of the package's own list of its files."""
    components = {_name(one): _component(one) for one in distributions()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {
                "type": "application",
                "bom-ref": "fedveil",
                "name": "fedveil",
                "version": __version__,
                "hashes": [{"alg": "SHA-256", "content": code_hash()}],
            },
        },
        "components": [components[name] for name in sorted(components) if name != "fedveil"],
    }


def _component(one: Distribution) -> dict[str, Any]:
    name = _name(one)
    url = f"pkg:pypi/{name}@{one.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": one.version,
        "purl": url,
    }
    if record := one.read_text("RECORD"):
        component["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(record.encode()).hexdigest()}]
    if "License-Expression" in one.metadata:
        component["licenses"] = [{"expression": one.metadata["License-Expression"]}]
    return component


def _name(one: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()


def document(values: dict[str, Any]) -> bytes:
    """A document as bytes of JSON."""
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
