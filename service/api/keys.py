"""The API keys of a service: from its settings, and from a file as secrets are mounted."""

from __future__ import annotations

from pathlib import Path

from service.errors import ServiceError
from service.settings import Settings


def api_keys(settings: Settings) -> list[str]:
    """All keys that the settings give, those of the file last. Raises ServiceError, as `keys_in` does."""
    keys = [key.get_secret_value() for key in settings.api_keys]
    return keys if settings.api_keys_file is None else keys + keys_in(settings.api_keys_file)


def keys_in(path: Path) -> list[str]:
    """The keys of a file, one a line; blank lines and those that begin with # are none.

    Raises ServiceError where there is none to be had: who names a file never means an open service.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ServiceError(
            f"The file of API keys {str(path)!r} can't be read: {error.strerror}. Set "
            "VIT_ATTENTION_API_KEYS_FILE to a file that this user may read, or don't set it."
        ) from error
    except UnicodeDecodeError:  # its text quotes the file
        raise ServiceError(
            f"The file of API keys {str(path)!r} is not UTF-8 text; write one key a line."
        ) from None
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise ServiceError(
            f"The file of API keys {str(path)!r} holds no key, which would leave the service open; write one "
            "key a line, or don't set VIT_ATTENTION_API_KEYS_FILE."
        )
    return keys
