"""Download a model from a hub, or an official .npz from its bucket, and add it to the store.

What was fetched stays in .downloads/ under the store until the model is added, so that a pull that was
interrupted, even by a crash, goes on where it ended. The hub's own downloader starts files over and
may fetch them by another protocol, so only its addresses and its token are used.
"""

from __future__ import annotations

import errno
import fcntl
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from httpx_retries import retry_request
from huggingface_hub import constants, get_token, hf_hub_url
from pydantic import BaseModel, Field, ValidationError

from service.errors import DownloadError
from service.store import download
from service.store.download import Remote
from service.store.registry import Registry, StoredModel
from service.weights.detect import read_checkpoint, read_labels

BUCKET = "https://storage.googleapis.com"
OFFICIAL_FOLDER = "vit_models/imagenet21k+imagenet2012"
OFFICIAL_LABELS = "bit_models/ilsvrc2012_wordnet_lemmas.txt"
OFFICIAL_LICENCE = "apache-2.0"
OFFICIAL = (
    "ViT-B_16-224",
    "ViT-B_16",
    "ViT-B_32",
    "ViT-B_8",
    "ViT-L_16-224",
    "ViT-L_16",
    "ViT-L_32",
)
ACCEPTED = (
    "Accepted are owner/name as on the Hugging Face hub, such as google/vit-base-patch16-224, "
    f"facebook/deit-tiny-patch16-224 or timm/vit_small_patch16_224.augreg_in1k, and {', '.join(OFFICIAL)}."
)
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
CONFIGS = {"config.json", "preprocessor_config.json"}
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Origin:
    """What there is to fetch, and what to record about it.

    version: changes when the files do; files of two versions are kept apart.
    weights: the file, or "." for the folder, that holds the checkpoint.
    labels: the file with one label a line, or None where the checkpoint brings its own.
    """

    files: list[Remote]
    version: str
    weights: str
    labels: str | None
    source: str
    licence: str | None


class _Lfs(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _HubFile(BaseModel):
    rfilename: str
    size: int
    lfs: _Lfs | None = None


class _HubModel(BaseModel):
    """The part of the hub's answer about a model that a pull needs."""

    sha: str = Field(pattern=r"^[0-9a-f]{40}$")
    siblings: list[_HubFile]
    cardData: dict[str, object] | None = None


def pull(
    name: str,
    registry: Registry,
    *,
    store_name: str | None = None,
    labels: list[str] | None = None,
    replace: bool = False,
    hub_url: str | None = None,
    bucket_url: str | None = None,
) -> StoredModel:
    """Fetch a model and add it to the store under its last component, or `store_name`.

    labels: instead of those that come with the model.
    hub_url: instead of HF_ENDPOINT or the Hugging Face hub.
    bucket_url: instead of Google's, for the official names.
    """
    store_name = store_name or name.rpartition("/")[2]
    official = name in OFFICIAL
    if not official and not HUB_NAME.fullmatch(name):
        raise DownloadError(f"{name[:200]!r} is not a model that can be pulled. {ACCEPTED}")
    registry.require_free(store_name, replace=replace)
    base = (bucket_url or BUCKET if official else hub_url or constants.ENDPOINT).rstrip("/")
    folder = registry.root / ".downloads" / name.replace("/", "--")
    with _explained(name, base), _alone(folder, name), _client(official=official) as client:
        origin = _official(client, name, base) if official else _hub(client, name, base)
        fetched = folder / origin.version
        fetched.mkdir(exist_ok=True)
        for remote in origin.files:
            download.fetch(client, remote, fetched)
        if labels is None and origin.labels is not None:
            labels = read_labels(fetched / origin.labels)
        checkpoint = read_checkpoint(fetched / origin.weights, labels)
        stored = registry.add(store_name, checkpoint, origin.source, origin.licence, replace=replace)
        shutil.rmtree(folder)
    return stored


def _official(client: httpx.Client, name: str, base: str) -> Origin:
    """A checkpoint of Google's vision_transformer, and the label file that it goes with."""
    weights = _stated(client, f"{base}/{OFFICIAL_FOLDER}/{name}.npz")
    labels = _stated(client, f"{base}/{OFFICIAL_LABELS}")
    version = (weights.digest or "unstated").removeprefix("md5:")
    return Origin([labels, weights], version, weights.name, labels.name, weights.url, OFFICIAL_LICENCE)


def _stated(client: httpx.Client, url: str) -> Remote:
    """A file of the bucket, with the size and the MD5 that its headers state."""
    response = retry_request(client, "HEAD", url, retry=download.RETRY).raise_for_status()
    if "Content-Length" not in response.headers:
        raise DownloadError(f"{url} does not state the file's size, so it can't be fetched safely.")
    md5 = re.search(r"md5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))
    return Remote(
        url,
        url.rpartition("/")[2],
        int(response.headers["Content-Length"]),
        f"md5:{b64decode(md5[1]).hex()}" if md5 else None,
    )


def _hub(client: httpx.Client, name: str, base: str) -> Origin:
    """A model of a hub at its newest revision: weights as safetensors, and what describes them."""
    url = f"{base}/api/models/{name}"
    response = retry_request(client, "GET", url, retry=download.RETRY, params={"blobs": "true"})
    try:
        model = _HubModel.model_validate_json(response.raise_for_status().content)
    except ValidationError as error:
        raise DownloadError(
            f"{url} does not answer as a Hugging Face hub does; check HF_ENDPOINT."
        ) from error
    wanted = _wanted(name, {file.rfilename for file in model.siblings})
    files = [
        Remote(
            hf_hub_url(name, file.rfilename, revision=model.sha, endpoint=base),
            file.rfilename,
            file.size,
            f"sha256:{file.lfs.sha256}" if file.lfs else None,
        )
        for file in model.siblings
        if file.rfilename in wanted
    ]
    licence = (model.cardData or {}).get("license")
    stated = licence if isinstance(licence, str) else None
    return Origin(files, model.sha, ".", None, f"{name}@{model.sha}", stated)


def _wanted(name: str, present: set[str]) -> set[str]:
    if WHOLE in present:
        return present & {*CONFIGS, WHOLE}
    if INDEX in present:
        return {file for file in present if file in {*CONFIGS, INDEX} or SHARD.fullmatch(file)}
    raise DownloadError(
        f"{name} has no {WHOLE}. Pickled weights (.bin, .pt) are never downloaded, since opening one can "
        "run code; choose a model that offers safetensors."
    )


def _client(*, official: bool) -> httpx.Client:
    """A client that follows redirects; the hub's token goes to the hub alone."""
    headers = {"Accept-Encoding": "identity"}
    if not official and (token := get_token()):
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Client(follow_redirects=True, timeout=30, headers=headers)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """A folder for the download that no other process writes to meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"Another process is pulling {name} right now; wait for it.") from None
        yield


@contextmanager
def _explained(name: str, base: str) -> Iterator[None]:
    """Turn what can go wrong on the way into a sentence with a remedy."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise DownloadError(_refusal(name, base, error.response)) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(
            f"The download of {name} from {base} failed: {error or type(error).__name__}. Check the network "
            "(a proxy is taken from HTTPS_PROXY, a mirror of the hub from HF_ENDPOINT) and run the same "
            "command again: it goes on where it stopped. A model that was fetched elsewhere is added "
            "with `vit-attention models import PATH`."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(
                f"The disk is full. Make room and pull {name} again: it goes on where it stopped."
            ) from error
        raise DownloadError(f"{name} can't be stored: {error}.") from error
    except KeyboardInterrupt:
        raise DownloadError(f"Interrupted. Pull {name} again, and it goes on where it stopped.") from None


def _refusal(name: str, base: str, response: httpx.Response) -> str:
    gated = response.headers.get("X-Error-Code") == "GatedRepo"
    if gated or response.status_code == httpx.codes.FORBIDDEN:
        return (
            f"{base} does not give {name} to everybody. Accept its terms at {base}/{name}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
        return (
            f"There is no {name} at {response.url.copy_with(query=None)}, or it is private (then HF_TOKEN "
            f"must be a token that may read it). {ACCEPTED}"
        )
    return f"{response.url} answered {response.status_code} {response.reason_phrase}; try again later."
