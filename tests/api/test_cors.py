"""Which pages of other origins may call the service: none by default, then those that are named."""

import httpx
import pytest

from service.api.app import create_app
from service.errors import QueueFull
from service.settings import Settings

OURS, OTHER = "https://a.example", "https://b.example"
ALLOW = "Access-Control-Allow-Origin"
TAKEN = ["authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout"]
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ", ".join(TAKEN)}


def cors_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/predict", "/"])
async def test_closed_by_default(client, path):
    response = await client.get(path, headers={"Origin": OURS})
    assert not cors_headers(response)
    preflight = await client.options(path, headers={"Origin": OURS, **PREFLIGHT})
    assert preflight.status_code in (404, 405)
    assert not cors_headers(preflight)


class TestConfigured:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(
            cors_origins=[OURS, "https://c.example"], api_keys=["key"], max_body_bytes=200_000, timeout_s=5
        )

    @pytest.fixture
    def headers(self) -> dict[str, str]:
        return {"Origin": OURS, "X-API-Key": "key"}

    async def test_a_preflight_needs_no_key_and_is_logged_and_counted(self, client, metrics, log_lines):
        response = await client.options("/predict", headers={"Origin": OURS, **PREFLIGHT})
        assert response.status_code == 200
        assert response.headers[ALLOW] == OURS
        assert response.headers["Access-Control-Allow-Methods"] == "GET, POST"
        allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert set(TAKEN) <= set(allowed)
        assert "Access-Control-Allow-Credentials" not in response.headers
        assert response.headers["X-Request-ID"]
        assert (log_lines[-1]["method"], log_lines[-1]["status"]) == ("OPTIONS", 200)
        assert b'requests_total{method="OPTIONS",route="unmatched",status="200"} 1.0' in metrics.render()

    @pytest.mark.parametrize(
        "wanted",
        [
            {"Origin": OTHER},
            {"Origin": f"{OURS}.evil.example"},
            {"Origin": "null"},
            {"Access-Control-Request-Method": "DELETE"},
            {"Access-Control-Request-Headers": "x-other"},
        ],
    )
    async def test_other_preflights_are_refused(self, client, wanted):
        response = await client.options("/predict", headers={"Origin": OURS, **PREFLIGHT, **wanted})
        assert response.status_code == 400
        assert response.headers.get(ALLOW) in (None, OURS)
        assert (ALLOW in response.headers) == ("Origin" not in wanted)

    async def test_a_page_of_ours_reads_answers_and_their_headers(self, client, headers, jpeg):
        response = await client.post("/attention/rollout", content=jpeg, headers=headers)
        assert response.status_code == 200
        assert response.headers[ALLOW] == OURS
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"Retry-After", "Server-Timing", "X-Labels", "X-Request-ID"} <= set(exposed)
        assert response.headers["Vary"] == "Accept, Origin"

    async def test_another_page_does_not(self, client, headers):
        response = await client.get("/models", headers={**headers, "Origin": OTHER})
        assert ALLOW not in response.headers
        assert "Origin" in response.headers["Vary"]

    async def test_caches_know_that_answers_differ(self, client):
        assert "Origin" in (await client.get("/healthz")).headers["Vary"]

    @pytest.mark.parametrize(
        ("status", "raised"),
        [(503, QueueFull("Full.", retry_after=2)), (500, RuntimeError("secret"))],
    )
    async def test_errors_can_be_read(self, client, engine, headers, jpeg, status, raised):
        engine.raises = raised
        response = await client.post("/predict", content=jpeg, headers=headers)
        assert response.status_code == status
        assert response.headers[ALLOW] == OURS
        engine.raises = raised
        response = await client.post("/predict", content=jpeg, headers={**headers, "Origin": OTHER})
        assert ALLOW not in response.headers

    @pytest.mark.parametrize(
        ("status", "changed"),
        [
            (413, {"Content-Length": "999999999"}),
            (401, {"X-API-Key": "wrong"}),
            (415, {"Content-Type": "text/plain"}),
            (422, {"X-Request-Timeout": "soon"}),
        ],
    )
    async def test_refusals_can_be_read(self, client, headers, jpeg, status, changed):
        response = await client.post("/predict", content=jpeg, headers={**headers, **changed})
        assert response.status_code == status
        assert response.headers[ALLOW] == OURS

    @pytest.mark.parametrize(("status", "path"), [(404, "/nowhere"), (405, "/predict")])
    async def test_wrong_routes_can_be_read(self, client, headers, status, path):
        response = await client.get(path, headers=headers)
        assert (response.status_code, response.headers[ALLOW]) == (status, OURS)


async def test_any_origin_where_that_is_said(engine, jpeg):
    app = create_app(Settings(cors_origins=["*"]), engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/predict", content=jpeg, headers={"Origin": OTHER})
        assert response.headers[ALLOW] == "*"
        assert "Access-Control-Allow-Credentials" not in response.headers
        preflight = await client.options("/predict", headers={"Origin": OTHER, **PREFLIGHT})
        assert (preflight.status_code, preflight.headers[ALLOW]) == (200, "*")
