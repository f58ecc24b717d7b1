import json

import pytest
from pydantic import ValidationError

from service.models.spec import Architecture
from service.store.manifest import Manifest, is_name
from service.types import Preprocess

from .tiny import BAD_NAMES

MANIFEST = Manifest(
    name="a-model_1.0",
    architecture=Architecture((21, 35), 7, 24, 2, 3, 40, 2, 3, True, 1e-12, "bicubic"),
    preprocessing=Preprocess((21, 35), 29, "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    labels=["grüne Mamba", "two\nlines"],
    digest="sha256:" + "0a" * 32,
    source="owner/name@abc",
)


def test_a_manifest_comes_back_as_it_was_written():
    assert Manifest.model_validate_json(MANIFEST.model_dump_json()) == MANIFEST


def test_a_squashing_resize_keeps_both_sides():
    squash = Preprocess((21, 35), (23, 37), "bilinear", (0.5,) * 3, (0.5,) * 3)
    manifest = MANIFEST.model_copy(update={"preprocessing": squash})
    assert Manifest.model_validate_json(manifest.model_dump_json()).preprocessing == squash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ["one"]}, "1 labels for 2 classes"),
        ({"name": "../x"}, "name"),
        ({"name": "x\n"}, "name"),
        ({"family": "cnn"}, "family"),
        ({"format": 2}, "format"),
        ({"digest": "sha256:0"}, "digest"),
        ({"surprise": 1}, "surprise"),
        ({"architecture": {"heads": 5}}, "not a multiple of 5 heads"),
        ({"architecture": {"depth": 0}}, "at least 1"),
        ({"architecture": {"depth": "many"}}, "depth"),
        ({"architecture": {"surprise": 1}}, "surprise"),
        ({"preprocessing": {"interpolation": "nearest"}}, "interpolation"),
        ({"preprocessing": {"mean": [0.5]}}, "mean"),
    ],
)
def test_what_does_not_hold_together_is_refused(change, said):
    fields = json.loads(MANIFEST.model_dump_json())
    for key, value in change.items():
        fields[key] = fields[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValidationError, match=said):
        Manifest.model_validate_json(json.dumps(fields))


@pytest.mark.parametrize("name", ["a", "0", "ViT-B_16-224", "vit.tiny", "x" * 100])
def test_names(name):
    assert is_name(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name(name):
    assert not is_name(name)
