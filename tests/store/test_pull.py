import pytest
import torch
from httpx_retries import Retry

from service.errors import CheckpointError, DownloadError, StoreError
from service.store import download
from service.store import pull as module
from service.store.pull import pull

from .stand_in import LABELS, NPZ, SHA
from .tiny import saved


def fetch(stand_in, registry, name="google/vit-tiny", **options):
    return pull(name, registry, hub_url=stand_in.url, bucket_url=stand_in.url, **options)


def leftovers(registry) -> list[str]:
    return sorted(path.name for path in (registry.root / ".downloads").rglob("*") if path.is_dir())


def test_a_hub_model_becomes_a_stored_one(stand_in, registry, tiny_vit):
    manifest = fetch(stand_in, registry).manifest
    assert (manifest.name, manifest.source, manifest.licence) == (
        "vit-tiny",
        f"google/vit-tiny@{SHA}",
        "apache-2.0",
    )
    assert manifest.labels == ["cat", "dog", "eel"]
    _, model = registry.load(registry.open("vit-tiny"))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(model(pixels).logits, tiny_vit.eval()(pixels).logits, atol=1e-5)
    assert not any(path.endswith((".bin", "README.md")) for _, path, _ in stand_in.asked)
    assert leftovers(registry) == []


def test_shards(stand_in, registry, tiny_vit, tmp_path):
    stand_in.hub["google/vit-tiny"] = files = saved(tiny_vit, tmp_path / "shards", max_shard_size="15KB")
    assert sum(name.startswith("model-0") for name in files) > 1
    _, model = registry.load(fetch(stand_in, registry))
    assert torch.equal(model.state_dict()["head.weight"], tiny_vit.classifier.weight)


def test_an_official_npz_comes_with_its_labels(stand_in, registry):
    manifest = fetch(stand_in, registry, "ViT-B_16-224").manifest
    assert (manifest.name, manifest.labels) == ("ViT-B_16-224", ["cat", "dog", "eel"])
    assert manifest.source == f"{stand_in.url}/{NPZ}"
    assert (manifest.architecture.heads, manifest.architecture.trained_size) == (2, (15, 15))
    assert leftovers(registry) == []


def test_name_labels_and_force(stand_in, registry):
    assert fetch(stand_in, registry, store_name="mine", labels=["a", "b", "c"]).manifest.labels == [
        "a",
        "b",
        "c",
    ]
    stand_in.asked.clear()
    with pytest.raises(StoreError, match="in the store already"):
        fetch(stand_in, registry, store_name="mine")
    assert stand_in.asked == []
    assert fetch(stand_in, registry, store_name="mine", replace=True).manifest.labels[0] == "cat"


@pytest.mark.parametrize(
    "name", ["vit-tiny", "", "../x", "a/../b", "/etc", "a/b/c", "http://x/y", "a/b\0", "x" * 300]
)
def test_what_is_no_name_is_told_what_is(registry, name):
    with pytest.raises(DownloadError, match=r"owner/name.*google/vit-base-patch16-224.*ViT-B_16-224"):
        pull(name, registry)
    assert not registry.root.exists()


@pytest.mark.parametrize("name", ["google/nothing", "ViT-L_32"])
def test_an_unknown_model(stand_in, registry, name):
    with pytest.raises(DownloadError, match=rf"There is no {name} at http.*Accepted are owner/name"):
        fetch(stand_in, registry, name)


@pytest.mark.parametrize("answer", [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")])
def test_a_gated_model(stand_in, registry, answer):
    stand_in.status["google/vit-tiny"] = answer
    with pytest.raises(DownloadError, match=r"Accept its terms at http.*/google/vit-tiny.*HF_TOKEN"):
        fetch(stand_in, registry)


def test_the_token_goes_to_the_hub_alone(stand_in, registry, monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: "hf_secret")
    fetch(stand_in, registry)
    assert stand_in.tokens == {"Bearer hf_secret"}
    with module._client(official=True) as client:
        assert "Authorization" not in client.headers


def test_pickles_are_never_fetched(stand_in, registry, whole):
    stand_in.hub["google/vit-tiny"] = {name: whole[name] for name in ("config.json", "pytorch_model.bin")}
    with pytest.raises(DownloadError, match=r"has no model\.safetensors\. Pickled weights"):
        fetch(stand_in, registry)


def test_something_that_is_no_hub(stand_in, registry):
    stand_in.bucket["api/models/google/vit-tiny"] = b"<html>Log in to the airport's network</html>"
    with pytest.raises(DownloadError, match="does not answer as a Hugging Face hub does"):
        fetch(stand_in, registry)


def test_a_cut_connection_is_resumed_at_once(stand_in, registry, whole):
    stand_in.cut["model.safetensors"] = [10_000, 7, 0]
    fetch(stand_in, registry)
    assert stand_in.ranges("model.safetensors") == [None, "bytes=10000-", "bytes=10007-", "bytes=10007-"]
    assert registry.load(registry.open("vit-tiny"))


def test_a_server_without_ranges_starts_over(stand_in, registry):
    stand_in.cut["model.safetensors"] = [10_000]
    stand_in.ignores_range = True
    assert registry.load(fetch(stand_in, registry))


@pytest.mark.parametrize(
    ("name", "file"), [("google/vit-tiny", "model.safetensors"), ("ViT-B_16-224", "224.npz")]
)
def test_a_pull_that_gave_up_is_resumed_by_the_next(stand_in, registry, name, file):
    cut = "ViT-B_16-224.npz" if file == "224.npz" else file
    stand_in.cut[cut] = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match="run the same command again: it goes on where it stopped"):
        fetch(stand_in, registry, name)
    assert registry.names() == []
    stand_in.cut.clear()
    stand_in.asked.clear()
    assert registry.load(fetch(stand_in, registry, name))
    assert stand_in.ranges(file) == ["bytes=1000-"]
    assert leftovers(registry) == []


@pytest.mark.parametrize(
    ("name", "file"), [("google/vit-tiny", "model.safetensors"), ("ViT-B_16-224", "ViT-B_16-224.npz")]
)
def test_a_file_that_is_not_what_the_server_states_is_dropped(stand_in, registry, name, file):
    stand_in.damaged.add(file)
    with pytest.raises(DownloadError, match=rf"{file} arrived damaged"):
        fetch(stand_in, registry, name)
    assert registry.names() == []
    stand_in.damaged.clear()
    assert registry.load(fetch(stand_in, registry, name))


def test_a_missing_label_file(stand_in, registry):
    del stand_in.bucket[LABELS]
    with pytest.raises(DownloadError, match=r"wordnet_lemmas\.txt"):
        fetch(stand_in, registry, "ViT-B_16-224")


def test_labels_that_do_not_fit(stand_in, registry):
    with pytest.raises(CheckpointError, match="3 classes, but there are 2 labels"):
        fetch(stand_in, registry, labels=["a", "b"])
    assert registry.names() == []


def test_no_network(registry, monkeypatch):
    monkeypatch.setattr(download, "RETRY", Retry(total=1, backoff_factor=0))
    with pytest.raises(DownloadError, match=r"refused.*HF_ENDPOINT.*models import PATH"):
        pull("google/vit-tiny", registry, hub_url="http://127.0.0.1:9")


def test_a_full_disk(stand_in, registry, monkeypatch):
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match="disk is too full"):
        fetch(stand_in, registry)


def test_an_interrupt_says_how_to_go_on(stand_in, registry, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_append", interrupted)
    with pytest.raises(DownloadError, match=r"Interrupted.*goes on where it stopped"):
        fetch(stand_in, registry)


def test_two_pulls_of_one_model_do_not_mix(stand_in, registry):
    with (
        module._alone(registry.root / ".downloads" / "google--vit-tiny", "it"),
        pytest.raises(DownloadError, match="Another process is pulling google/vit-tiny"),
    ):
        fetch(stand_in, registry)
