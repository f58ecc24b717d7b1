"""The console script `vit-attention`: one module a command, heavy imports inside the commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from service import __version__
from service.cli import benchmark, openapi, pictures, serve
from service.cli.models import models_app
from service.errors import ServiceError


class Commands(TyperGroup):
    """Tells a ServiceError in one sentence, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; exit code 1 and `error: ...` for what went wrong."""
        try:
            return super().invoke(ctx)
        except ServiceError as error:
            typer.echo(f"error: {error.detail}", err=True)
            raise typer.Exit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vit-attention {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _vit_attention(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What a Vision Transformer predicts, and what it looks at."""


app.command()(serve.serve)
app.command(short_help="Say what is in pictures.")(pictures.predict)
app.command(short_help="Write what the model looked at, as masks.")(pictures.rollout)
app.command(short_help="Write what each block looked at, as canvases.")(pictures.blocks)
app.add_typer(models_app, name="models")
app.command(short_help="Measure a server under load.")(benchmark.benchmark)
app.command(short_help="Print the reference of the HTTP interface.")(openapi.openapi)


def main() -> None:
    """The console script."""
    app()
