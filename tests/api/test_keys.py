"""API keys from a file: which there are, and that no other file opens the service or tells a key."""

from pathlib import Path

import httpx
import pytest

from service.api.app import create_app
from service.api.keys import api_keys, keys_in
from service.errors import ServiceError
from service.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_one_key_a_line(file):
    file.write_bytes("\ufeff# ours\r\none\r\n\r\n  two#2 \t\n   # old\nthreé".encode())
    assert keys_in(file) == ["one", "two#2", "threé"]


def test_keys_of_the_file_join_those_of_the_settings(file):
    file.write_text("two\n")
    assert api_keys(Settings(api_keys=["one"], api_keys_file=file)) == ["one", "two"]
    assert api_keys(Settings(api_keys=["one"])) == ["one"]


@pytest.mark.parametrize("held", [b"", b"\n \n", b"# one\n", b"\xef\xbb\xbf"])
def test_a_file_without_keys_never_means_open(engine, file, held):
    file.write_bytes(held)
    with pytest.raises(ServiceError, match=r"holds no key.*write one key a line") as caught:
        create_app(Settings(api_keys=["another"], api_keys_file=file), engine)
    assert str(file) in caught.value.detail


def test_a_missing_file_is_told_with_the_remedy(file, engine):
    with pytest.raises(ServiceError, match=r"No such file.*VIT_ATTENTION_API_KEYS_FILE") as caught:
        create_app(Settings(api_keys_file=file), engine)
    assert str(file) in caught.value.detail


def test_a_folder_is_no_file_of_keys(tmp_path):
    with pytest.raises(ServiceError, match="Is a directory"):
        keys_in(tmp_path)


def test_a_file_that_this_user_may_not_read(file):
    file.write_text("one")
    file.chmod(0)
    try:
        file.read_bytes()
    except PermissionError:
        with pytest.raises(ServiceError, match="Permission denied"):
            keys_in(file)
    else:
        pytest.skip("this user may read every file")


def test_what_is_no_text_is_not_quoted(file):
    file.write_bytes(b"secret\xff\xfe")
    with pytest.raises(ServiceError, match="not UTF-8") as caught:
        keys_in(file)
    assert "secret" not in caught.value.detail
    assert caught.value.__cause__ is None


class TestWithAFile:
    @pytest.fixture
    def settings(self, file) -> Settings:
        file.write_text("first-key\nsecond-key\n")
        return Settings(api_keys=["third-key"], api_keys_file=file, max_body_bytes=200_000)

    @pytest.mark.parametrize("key", ["first-key", "second-key", "third-key"])
    async def test_every_key_opens(self, client, key):
        assert (await client.get("/models", headers={"X-API-Key": key})).status_code == 200

    @pytest.mark.parametrize("key", ["first", "first-key\t,", "#", "first-keysecond-key", "\u00ff"])
    async def test_another_does_not(self, client, key):
        response = await client.get("/models", headers={"X-API-Key": key.encode()})
        assert response.status_code == 401
        assert "-key" not in response.text

    async def test_no_key_is_told_by_the_app(self, app, client, log_lines):
        headers = {"Authorization": "Bearer first-key"}
        texts = [
            (await client.get(path, headers=headers)).text
            for path in ("/openapi.json", "/docs", "/metrics", "/models", "/predict", "/nowhere")
        ]
        assert "-key" not in "".join(texts) + repr(vars(app.state)) + repr(log_lines)

    async def test_every_key_is_compared(self, client, monkeypatch):
        compared = []

        def compare(offered: bytes, known: bytes) -> bool:
            compared.append(known)
            return offered == known

        monkeypatch.setattr("service.api.keys.hmac.compare_digest", compare)
        await client.get("/models", headers={"X-API-Key": "first-key"})
        assert len(set(compared)) == 3

    async def test_a_stranger_learns_nothing_of_a_full_house(self, client, engine):
        engine.full = True
        for headers in ({}, {"X-API-Key": "first"}, {"Authorization": "Basic first-key"}):
            assert (await client.post("/predict", headers=headers)).status_code == 401
        for headers in ({"X-API-Key": "first-key"}, {"Authorization": "bearer second-key"}):
            assert (await client.post("/predict", headers=headers)).status_code == 503

    async def test_the_door_is_not_called_open(self, app, log_lines):
        app.state.settings = app.state.settings.model_copy(update={"host": "0.0.0.0", "api_keys": []})
        async with app.router.lifespan_context(app):
            assert not log_lines


async def test_a_file_alone_closes_the_service(engine, file):
    file.write_text("only\n")
    app = create_app(Settings(api_keys_file=file), engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/models")).status_code == 401
        assert (await client.get("/models", headers={"X-API-Key": "only"})).status_code == 200
