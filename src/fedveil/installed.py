"""Which code runs here: a hash of fedveil's own modules."""

import hashlib
from importlib.resources import files
from typing import Any

__all__ = ["code_hash"]


def code_hash() -> str:
    """SHA-256 over the names and contents of every module of fedveil as it is installed here."""
    digest = hashlib.sha256()
    root = files("fedveil")
    for name in sorted(_modules(root, "")):
        content = root.joinpath(name).read_bytes()
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _modules(folder: Any, before: str) -> list[str]:
    found = []
    for item in folder.iterdir():
        if item.is_dir() and item.name != "__pycache__":
            found += _modules(item, f"{before}{item.name}/")
        elif item.name.endswith(".py"):
            found.append(f"{before}{item.name}")
    return found
