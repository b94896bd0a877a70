"""A site's folder belongs to one user of the machine, and every command on it runs as that user.

A file that another user makes here, root included, is one that the service cannot read. So the command refuses before
it writes anything.
"""

import os
import pwd
from pathlib import Path

from fedveil.errors import Refused

__all__ = ["check_user"]

_OWN = (
    "site.toml",
    "identity.key",
    "patients.key",
    "handovers.jsonl",
    "ledger.jsonl",
    "ledger.jsonl.head",
    "decisions.jsonl",
    "decisions.jsonl.head",
    "studies",
    "peers",
    "spool",
    "models",
    "cache",
)


def check_user(folder: Path) -> None:
    """Refuse to run as another user than the folder's owner, and name what belongs to somebody else in it.

    Raises:
        Refused: with the command that corrects it.
    """
    if not folder.is_dir():
        return  # the settings' own error names it
    owner, me = folder.stat().st_uid, os.geteuid()
    if owner != me:
        raise Refused(
            f"{folder} belongs to {_name(owner)}, and this command runs as {_name(me)}",
            "what another user writes there, root included, the site service cannot read",
            f"run it as {_name(owner)}: sudo -u {_sudo(owner)} fedveil site ...",
        )
    for path in _files(folder):
        if path.lstat().st_uid != owner:
            raise Refused(
                f"{path} belongs to {_name(path.lstat().st_uid)}",
                f"everything in {folder} must belong to {_name(owner)}, whom the site service runs as",
                f"run as root: chown -R {_sudo(owner).lstrip('#')}: {folder}",
            )


def _files(folder: Path) -> list[Path]:
    """What the programs of a site write: its own files, and what lies directly in the small folders."""
    found = [folder / name for name in _OWN if (folder / name).exists()]
    return found + [path for name in ("studies", "peers") for path in sorted((folder / name).glob("*"))]


def _name(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:  # a container's user without an entry
        return f"the user number {user}"


def _sudo(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
