"""The viewer page as the app serves it: whole, under its policy, and with nothing from elsewhere.

What it does in a browser is not tested here.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from service.api.app import WEB, create_app
from service.api.page import CONTENT_SECURITY_POLICY
from service.settings import Settings

FILES = sorted(path.name for path in WEB.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
TYPES = {".html": "text/html", ".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Page(HTMLParser):
    """Every tag of a page with its attributes, and the text inside its scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()

    def values(self, *names: str) -> list[str]:
        """What these attributes are set to, on all tags."""
        return [value for _, attrs in self.tags for name in names if (value := attrs.get(name))]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(source("index.html"))


def source(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


async def get(path: str) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(Settings(api_keys=["secret"])))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize("name", FILES)
async def test_every_file_is_served_without_a_key_and_under_the_policy(name: str) -> None:
    answer = await get("/" if name == "index.html" else f"/{name}")
    assert answer.status_code == 200
    assert answer.content == (WEB / name).read_bytes()
    assert TYPES[Path(name).suffix] in answer.headers["Content-Type"]
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_every_file_that_is_named_exists(page: Page) -> None:
    named = {"index.html", *page.values("src", "href")} - {"docs"}
    for script in SCRIPTS:
        named |= set(re.findall(r'from "\./([^"]+)"', source(script)))
    assert named == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = source(name).replace(SVG_NAMESPACE, "")
    assert not re.search(r"(?:\w+:)?//[\w.-]+\.\w", text), "an address"
    assert not re.search(r"@import|\burl\(", text)


def test_no_script_or_style_is_inline(page: Page) -> None:
    assert page.inline == ""
    for tag, attrs in page.tags:
        assert "style" not in attrs, tag
        assert not [name for name in attrs if name.startswith("on")], tag
    for script in SCRIPTS:
        assert not re.search(r"\bstyle=|\bon\w+=\"|\beval\(|new Function\b", source(script)), script


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_id_that_a_script_asks_for_is_there_once(page: Page, script: str) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("(\w+)"\)', source(script))) <= set(ids)


def test_every_control_has_a_label(page: Page) -> None:
    fields = [attrs for tag, attrs in page.tags if tag in ("input", "select")]
    labels = [attrs for tag, attrs in page.tags if tag == "label"]
    assert len(labels) == len(fields) > 0
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


@pytest.mark.parametrize("name", ["inferno", "viridis"])
def test_lightness_rises_over_all_256_colours(name: str) -> None:
    (table,) = re.findall(rf"\b{name}: \[(.*?)\]", source("colours.js"), re.DOTALL)
    digits = "".join(re.findall(r'"([0-9a-f]+)"', table))
    assert len(digits) == 256 * 6
    colours = [[int(digits[i + j : i + j + 2], 16) for j in (0, 2, 4)] for i in range(0, len(digits), 6)]
    light = [lightness(colour) for colour in colours]
    assert min(later - earlier for earlier, later in pairwise(light)) > -0.3, "rounding"
    assert all(later > earlier for earlier, later in zip(light, light[4:], strict=False))
    assert light[0] < 20
    assert light[-1] > 85


def lightness(colour: list[int]) -> float:
    """CIE L* of an sRGB colour, 0 to 100."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y
