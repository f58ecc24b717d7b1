import pytest

from service.api.negotiation import preferred

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        CHROME,
        "application/json",
        "application/*",
        "application/json, image/png",
        "application/json, image/*",
        "image/png;q=0.5, application/json",
        "image/png;q=0, */*",
        "text/html",
        "image/webp",
        "nonsense",
        "image/png;q=high",
        "image/png;q=2",
        "image/png;q=nan",
        ",;,=,/;",
    ],
)
def test_json(accept):
    assert preferred(accept, ("application/json", "image/png")) == "application/json"


@pytest.mark.parametrize(
    "accept",
    [
        "image/png",
        "IMAGE/PNG; Q=0.1",
        "image/*",
        "image/png, */*",
        "image/avif,image/webp,image/apng,image/*,*/*;q=0.8",
        "application/json;q=0.9, image/png",
        "application/json;q=0, */*;q=0.1",
    ],
)
def test_png(accept):
    assert preferred(accept, ("application/json", "image/png")) == "image/png"
