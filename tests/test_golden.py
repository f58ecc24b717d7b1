"""The whole way, bytes in and PNG out, against the seed script's own outputs: right to the pixel."""

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from service.api.app import create_app
from service.settings import Settings
from service.store.registry import Registry
from service.weights.detect import read_checkpoint, read_labels

PHOTOS = [
    "codr_selected-n02127052_10040",
    "imagenet_stubs-koala",
    "imagenet_stubs-manhole_cover",
    "imagenet_stubs-tractor",
    "misc-hila_el2",
    "misc-imageio_chelsea",
]
FORMATS = {"safetensors": "vit_tiny_patch16_224.safetensors", "npz": "ViT-Ti_16-224.npz"}


@pytest.fixture(scope="module")
def store(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with ViT-Tiny, imported from both formats."""
    registry = Registry(tmp_path_factory.mktemp("store"))
    folder = test_data / "vit-tiny"
    labels = read_labels(folder / "ilsvrc2012_wordnet_lemmas.txt")
    for name, file in FORMATS.items():
        registry.add(name, read_checkpoint(folder / file, labels), file, None)
    return registry.root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(store: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app with both models, in fp32."""
    app = create_app(Settings(model_store=store, model=list(FORMATS), device="cpu", precision="fp32"))
    async with app.router.lifespan_context(app):
        await app.state.engine.wait_ready()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


def picture(text: str, mode: str = "RGB") -> np.ndarray:
    """The pixels of a base64 PNG, as wide integers so that differences can be negative."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert(mode)).astype(int)


def assert_same_picture(ours: np.ndarray, reference: np.ndarray) -> None:
    """Equal but for single steps at rounding edges, at most 1 % of the values off by 1."""
    difference = np.abs(ours - reference)
    assert ours.shape == reference.shape
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01


def assert_same_colours(ours: np.ndarray, reference: np.ndarray) -> None:
    """As above, for colours: one step of JET is up to 4 levels of a channel."""
    difference = np.abs(ours - reference).max(axis=-1)
    assert ours.shape == reference.shape
    assert difference.max() <= 4
    assert (difference > 0).mean() <= 0.01


@pytest.mark.parametrize("model", FORMATS)
@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.asyncio(loop_scope="module")
async def test_rollout_and_blocks_equal_the_seed_script(
    client: httpx.AsyncClient, test_data: Path, golden: Path, photo: str, model: str
) -> None:
    seed = np.load(golden / "seed-script" / f"{photo}.npz")
    path = test_data / "photos" / str(seed["photo"])
    options = {"model": model, "overlay": "masked", "grid": "true", "grids": "true", "top_k": "1000"}

    async def ask(route: str, *names: str) -> dict:
        params = {name: options[name] for name in ("model", "top_k", *names)}
        answer = await client.post(route, params=params, content=path.read_bytes())
        assert answer.status_code == 200, answer.text
        return answer.json()

    rollout = await ask("/attention/rollout", "overlay", "grid")
    logits = seed["logits"].astype(np.float64)
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    ours = np.empty(1000)
    for label in rollout["labels"]:
        ours[label["index"]] = label["score"]
    np.testing.assert_allclose(ours, scores, atol=1e-4)
    np.testing.assert_allclose(rollout["rollout"]["grid"], seed["rollout_grid"], atol=1e-5)
    assert_same_picture(picture(rollout["rollout"]["mask"], "L"), seed["mask_uint8"].astype(int))
    masked = np.asarray(Image.open(golden / "seed-script" / f"{photo}.masked.png").convert("RGB"))
    assert_same_picture(picture(rollout["rollout"]["overlay"]), masked.astype(int))

    blocks = await ask("/attention/blocks", "grids")
    np.testing.assert_allclose(blocks["blocks"]["grids"], seed["block_grids"], atol=1e-5)
    canvas = np.asarray(Image.open(golden / "seed-script" / f"{photo}.canvas.png").convert("RGB"))
    assert_same_colours(picture(blocks["blocks"]["canvas"]), canvas.astype(int))


@pytest.mark.asyncio(loop_scope="module")
async def test_photographs_get_the_right_label(
    client: httpx.AsyncClient, test_data: Path, store: Path
) -> None:
    """Top-1 over the photographs whose class their name tells; 84 % is what the weights reach elsewhere."""
    rows = (test_data / "vit-tiny/imagenet1k_index_synset_name.tsv").read_text().splitlines()
    table = [row.split("\t") for row in rows]
    by_synset = {row[1]: row[0] for row in table}
    by_name = {name.strip(): row[0] for row in table for name in row[4].split(",")}
    right = total = 0
    for path in sorted((test_data / "photos").glob("*/*.[Jj]*")):
        stem = path.stem
        truth = by_synset.get(stem.split("_")[0]) or by_name.get(stem)
        if truth is None or path.parent.name == "misc":
            continue
        answer = await client.post("/predict", params={"top_k": 1}, content=path.read_bytes())
        right += answer.json()["labels"][0]["index"] == int(truth)
        total += 1
    assert total >= 25
    assert right / total >= 0.75
