from pathlib import Path

from service.api.reference import render
from service.settings import Settings

COMMITTED = Path(__file__).parent.parent.parent / "openapi.md"


def test_openapi_md_is_what_the_app_serves(app):
    assert COMMITTED.read_text() == render(app), "run `vit-attention openapi > openapi.md`"


def test_every_setting_is_in_it(app):
    text = render(app)
    for name in Settings.model_fields:
        assert f"`VIT_ATTENTION_{name.upper()}`" in text
