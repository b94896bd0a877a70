"""The command by which a hospital states what it decided, and what that cost."""

from pathlib import Path
from typing import Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.cli.site.options import Folder, load_site

__all__ = ["site_statement"]


def site_statement(
    study: Annotated[str, typer.Argument(help="A study: its digest, the digest's beginning, or its name.")],
    folder: Folder = Path("site"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")] = Path(),
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write a printout as PDF.")] = False,
) -> None:
    """Write a signed statement on a study: decisions, guarantee, charges, software.

    Example: fedveil site statement pneumonia site --out statements
    """
    from fedveil.deploy.identity import Identity
    from fedveil.deploy.records.statement import write_statement
    from fedveil.deploy.site.approvals import Studies

    with speak_plainly():
        config = load_site(folder)
        identity = Identity.load(folder / "identity.key")
        digest = Studies(folder / "studies").find(study).digest
        for path in write_statement(config, identity, digest, out, pdf=pdf):
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
