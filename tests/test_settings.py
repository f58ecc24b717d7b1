"""Settings that must not be told, or not be misread."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_no_repr_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATTENTION_API_KEYS", "first-key, second-key")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    for shown in (repr(settings), str(settings), f"{settings.model_dump()}", settings.model_dump_json()):
        assert "-key" not in shown


def test_no_error_shows_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATTENTION_API_KEYS", "first-key,,second-key")
    with pytest.raises(ValidationError) as caught:
        Settings(port=-1)
    assert "-key" not in str(caught.value) + repr(caught.value.errors())


def test_files_and_origins_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATTENTION_API_KEYS_FILE", "/run/secrets/api_keys")
    monkeypatch.setenv("VIT_ATTENTION_CORS_ORIGINS", "https://a.example, http://[::1]:3000")
    settings = Settings()
    assert settings.api_keys_file == Path("/run/secrets/api_keys")
    assert settings.cors_origins == ["https://a.example", "http://[::1]:3000"]


def test_closed_and_quiet_by_default() -> None:
    settings = Settings()
    assert (settings.api_keys_file, settings.cors_origins, settings.traces) == (None, [], False)


@pytest.mark.parametrize("origin", ["*", "https://a.example:8443", "http://localhost", "app+x://id"])
def test_origins_as_browsers_write_them(origin: str) -> None:
    assert Settings(cors_origins=[origin]).cors_origins == [origin]


@pytest.mark.parametrize(
    "origin",
    ["", "null", "a.example", "https://a.example/", "https://A.example", "https://*.example/x", "https://"],
)
def test_what_no_browser_sends_as_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=[origin])
