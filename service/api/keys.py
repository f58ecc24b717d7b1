"""The API keys of a service: from its settings, and from a file as secrets are mounted."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers

from service.errors import ServiceError
from service.settings import Settings


class Keys:
    """The keys of one app, of which only digests are kept. Falsy where there are none: all may come in."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, headers: Headers) -> bool:
        """Whether a request with these headers may come in. Compares all keys, each in constant time."""
        if not self:
            return True
        offered = digest(offered_key(headers))
        matches = [hmac.compare_digest(offered, known) for known in self._digests]
        return any(matches)


def digest(key: str) -> bytes:
    """What is kept of an API key, and compared."""
    return hashlib.sha256(key.encode()).digest()


def offered_key(headers: Headers) -> str:
    """The key that a request carries, as a bearer token or in X-API-Key; empty without one."""
    scheme, token = get_authorization_scheme_param(headers.get("authorization"))
    return token if token and scheme.lower() == "bearer" else headers.get("x-api-key", "")


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
