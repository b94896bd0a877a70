"""Options that several commands of a hospital share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.output.console import speak_plainly
from fedveil.deploy.records.owner import check_user

if TYPE_CHECKING:
    from fedveil.deploy.site.config import SiteConfig

__all__ = ["AsJson", "By", "Folder", "Reason", "Role", "asked", "load_site"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _own(folder: Path) -> Path:
    """The folder, for its owner only: refused before anything of the command is imported or written."""
    with speak_plainly():
        check_user(folder)
    return folder


Folder = Annotated[Path, typer.Argument(callback=_own, help="The site's folder, with its site.toml.")]
By = Annotated[str | None, typer.Option("--by", help="Your name, for the record; asked for if missing.")]
Role = Annotated[str | None, typer.Option("--role", help='Your role, such as "privacy officer".')]
Reason = Annotated[str | None, typer.Option("--reason", help="The reason, for the record.")]


def load_site(folder: Path) -> "SiteConfig":
    """The settings of a site's folder; `InvalidValue` if they cannot be used."""
    from fedveil.deploy.site.config import SiteConfig

    os.environ.setdefault(
        "FEDVEIL_CACHE", str(folder.resolve() / "cache")
    )  # its user may have no home directory
    return SiteConfig.load(folder)


def asked(value: str | None, question: str, *, ask: bool, default: str | None = None) -> str:
    """What a person said on the command line or says now; empty if nobody may be asked."""
    if value is not None or not ask:
        return value or ""
    return str(typer.prompt(question, default=default, show_default=False))
