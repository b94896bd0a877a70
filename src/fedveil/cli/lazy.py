"""Commands whose modules are imported when they are run: `fedveil --help` must not wait for torch."""

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click
import typer
from click.shell_completion import CompletionItem
from typer.core import TyperGroup

__all__ = ["LazyCommand", "lazy_group"]


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is defined, and its help text until it is imported.

    Attributes:
        name: what is typed.
        place: ``module:attribute``, a function or a `typer.Typer` of further commands.
        help: the first sentence of its help. A test compares it with the command's own help.
    """

    name: str
    place: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.place.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(self.name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = self.name
        return command


class _Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported on first use."""

    def __init__(self, lazy: tuple[LazyCommand, ...]) -> None:
        self._lazy = {one.name: one for one in lazy}
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            self._loaded[name] = self._lazy[name].load()
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lazy)

    def __len__(self) -> int:
        return len(self._lazy)


def lazy_group(*lazy: LazyCommand) -> type[TyperGroup]:
    """A group of these commands, in this order, for ``typer.Typer(cls=...)``."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands: MutableMapping[str, click.Command] = _Commands(lazy)

        def list_commands(self, ctx: click.Context) -> list[str]:
            del ctx
            return [one.name for one in lazy]

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            del ctx
            with formatter.section("Commands"):
                formatter.write_dl([(one.name, one.help) for one in lazy])

        def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
            found = [
                CompletionItem(one.name, help=one.help) for one in lazy if one.name.startswith(incomplete)
            ]
            return found + click.Command.shell_complete(self, ctx, incomplete)

    return LazyGroup
