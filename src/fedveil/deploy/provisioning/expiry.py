"""How long a federation's certificates are still valid, and how old its keys are."""

import time
from pathlib import Path

from fedveil.deploy.provisioning.certificates import days_left

__all__ = ["SOON", "certificate_days", "expiring", "prometheus", "remedy"]

SOON = 30
"""Days before the end of a certificate from which on a person is warned."""

_CERTIFICATES = ("superlink.pem", "ca.pem", "node.pem")
_KEYS = ("identity.key", "superlink.key", "superlink.secret", "ca.key", "node.key")
_REMEDIES = {
    "superlink.pem": "run `fedveil federation renew`",
    "ca.pem": "the coordinator runs `fedveil federation renew --authority`, or makes new kits for NVFlare",
    "node.pem": "ask the coordinator for a new node/ folder",
}


def certificate_days(folder: Path) -> dict[str, int]:
    """Days until each certificate of a coordinator's or a node's folder expires; negative if it has."""
    found = [name for name in _CERTIFICATES if (folder / name).exists()] or ["superlink.pem", "ca.pem"]
    return {name: days_left((folder / name).read_bytes()) for name in found}


def remedy(name: str) -> str:
    """What to do about a certificate that expires."""
    return _REMEDIES[name]


def expiring(folder: Path) -> list[str]:
    """One sentence for each certificate that expires within `SOON` days, with what to do."""
    if not any((folder / name).exists() for name in _CERTIFICATES):
        return []
    return [
        f"{folder / name} expires in {days} days: {remedy(name)}"
        for name, days in certificate_days(folder).items()
        if days < SOON
    ]


def prometheus(folder: Path) -> str:
    """Days left of certificates and ages of keys, in Prometheus' text format."""
    now = time.time()
    ages = {
        name: (now - (folder / name).stat().st_mtime) / 86400 for name in _KEYS if (folder / name).exists()
    }
    lines = []
    for metric, words, values in (
        ("fedveil_certificate_days_left", "Days until a certificate expires.", certificate_days(folder)),
        ("fedveil_key_days", "Age of a key.", ages),
    ):
        lines += [f"# HELP {metric} {words}", f"# TYPE {metric} gauge"]
        lines += [f'{metric}{{file="{name}"}} {value:g}' for name, value in values.items()]
    return "\n".join(lines) + "\n"
