"""Flags that are settings: help from the setting, value over the environment's, errors by both names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import ValidationError

from service.settings import Settings

_PREFIX = str(Settings.model_config["env_prefix"])


def setting(name: str) -> Any:
    """The option of a command for the setting of that name; not given, it leaves the setting alone."""
    field = Settings.model_fields[name]
    many = isinstance(field.default, list)
    text = f"{field.description} May be repeated." if many else field.description
    default = ", ".join(field.default) if many else "none" if field.default is None else field.default
    return typer.Option(
        _flag(name),
        metavar=_metavar(field.annotation),
        help=f"{text} [{_variable(name)}; default: {default}]",
        show_default=False,
    )


def settings_from(flags: Mapping[str, object]) -> Settings:
    """The settings under the flags that were given (the rest are None), checked.

    Raises typer.BadParameter, which names the flag, the variable and what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise typer.BadParameter("\n".join(_sentence(each, given) for each in error.errors())) from error


def _sentence(error: Any, given: Mapping[str, object]) -> str:
    """`--port 70000: Input should be less than or equal to 65535. Port to listen on; ...`."""
    name = str(error["loc"][0])
    source = f"{_flag(name)} " if name in given else f"{_variable(name)}="
    allowed = Settings.model_fields[name].description
    rule = "Allowed:" if error["type"] == "string_pattern_mismatch" else f"{error['msg']}."
    return f"{source}{error['input']}: {rule} {allowed}"


def _metavar(annotation: Any) -> str:
    """`console|json` for a choice, `INT` for a number, `TEXT` for the rest."""
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    plain = {int: "INT", float: "NUMBER", Path: "FOLDER", Path | None: "FILE"}.get(annotation, "TEXT")
    return "|".join(choices) or plain


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _PREFIX + name.upper()
