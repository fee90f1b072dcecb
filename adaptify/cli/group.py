"""What groups of commands have in common: `adaptify` itself, and commands that have commands of their own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from adaptify.errors import UsageError, did_you_mean


class Group(TyperGroup):
    """A group whose unknown commands are answered like every other mistake."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in the order in which they are used."""
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return (name, command, remaining arguments) as click does, or say which command was meant."""
        if not ctx.resilient_parsing and args and self.get_command(ctx, args[0]) is None:
            near = did_you_mean(args[0], self.list_commands(ctx))
            raise UsageError(
                f"unknown command '{args[0]}'{near}", f"`{ctx.command_path} --help` lists the commands."
            )
        return super().resolve_command(ctx, args)


def make_group() -> typer.Typer:
    """Return an empty group that explains itself in plain text.

    Rich help would cost as much start-up time again as everything else together.
    """
    return typer.Typer(
        cls=Group,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        # Longer lines are harder to read, however wide the terminal is.
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
