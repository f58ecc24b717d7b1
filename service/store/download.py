"""Fetch files over HTTP so that an interruption costs nothing: a file is resumed, checked, then named."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import httpx
from httpx_retries import Retry
from tqdm import tqdm

from service.errors import DownloadError

RETRY = Retry(total=4, backoff_factor=0.5)


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    digest: what the server states, as "sha256:..." or "md5:..." in hexadecimal, or None.
    """

    url: str
    name: str
    size: int
    digest: str | None


def fetch(client: httpx.Client, remote: Remote, folder: Path) -> Path:
    """The file in that folder, fetched as far as it is not there yet.

    Raises DownloadError for a damaged file or a full disk, httpx.HTTPError for the server or the way to it.
    """
    path = folder / remote.name
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        part.touch()
        _require_room(remote.size - part.stat().st_size, folder)
        _complete(client, remote, part)
        _check(remote, part)
        part.rename(path)
    return path


def _complete(client: httpx.Client, remote: Remote, part: Path) -> None:
    """Append until the file has its size; give up after as many failures in a row as RETRY allows."""
    retry = RETRY
    while (held := part.stat().st_size) < remote.size:
        try:
            _append(client, remote, part)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if part.stat().st_size > held:
                retry = RETRY
            if retry.is_exhausted() or not _is_passing(error):
                raise
            retry = retry.increment()
            retry.sleep(error.response if isinstance(error, httpx.HTTPStatusError) else error)


def _is_passing(error: httpx.TransportError | httpx.HTTPStatusError) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return RETRY.is_retryable_status_code(error.response.status_code)
    return RETRY.is_retryable_exception(error)


def _append(client: httpx.Client, remote: Remote, part: Path) -> None:
    """One request for what is missing."""
    held = part.stat().st_size
    headers = {"Range": f"bytes={held}-"} if held else {}
    with client.stream("GET", remote.url, headers=headers) as response:
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                desc=remote.name,
                total=remote.size,
                initial=held if resumed else 0,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=None,  # no bar where nobody watches
            ) as bar,
        ):
            for chunk in response.iter_bytes():  # as they come: a chunk size would hold bytes back
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < remote.size:
        raise httpx.RemoteProtocolError("the server ended the file early")


def _check(remote: Remote, part: Path) -> None:
    """Raise, and drop the file, unless it is what the server states."""
    size = part.stat().st_size
    intact = size == remote.size
    if intact and remote.digest is not None:
        algorithm, _, expected = remote.digest.partition(":")
        with part.open("rb") as file:
            intact = hashlib.file_digest(file, algorithm).hexdigest() == expected
    if not intact:
        part.unlink()
        raise DownloadError(
            f"{remote.name} arrived damaged: it is not what {remote.url} states (size {remote.size}, "
            f"digest {remote.digest}). It was deleted; run the same command again, and if this "
            "repeats, suspect a proxy or a mirror."
        )


def _require_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"The disk is too full: {needed / 1e6:.0f} MB are still to come and "
            f"{free / 1e6:.0f} MB are free in {folder}."
        )
