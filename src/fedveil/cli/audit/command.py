"""The command `fedveil audit`, of a study or of any mechanism: two sets of options under one name."""

from typing import Any

import click
import typer
from typer.core import TyperCommand

from fedveil.cli.audit.study import audit_command

__all__ = ["app"]


class _StudyOrMechanism(TyperCommand):
    """The audit of a study; where ``--mechanism`` is given, that of a mechanism."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if any(one.partition("=")[0] == "--mechanism" for one in args):
            from fedveil.cli.audit.mechanism import audit_function

            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command("audit")(audit_function)
            return typer.main.get_command(single).make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command(
    "audit",
    cls=_StudyOrMechanism,
    epilog="Any other mechanism is audited with --mechanism package.module:function; "
    "fedveil audit --mechanism M --help prints its options.",
)(audit_command)
