"""`vit-attention openapi`: the reference of the HTTP interface."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from service.cli.flags import settings_from


def openapi(
    json: Annotated[bool, typer.Option("--json", help="The OpenAPI document instead.")] = False,
) -> None:
    """Print the reference of the HTTP interface (openapi.md)."""
    from service.api.app import create_app
    from service.api.reference import render

    app = create_app(settings_from({}))
    typer.echo(jsonlib.dumps(app.openapi(), indent=2) if json else render(app), nl=json)
