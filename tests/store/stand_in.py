"""A hub and a bucket on this machine: the parts of their HTTP that a pull speaks."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NPZ = "vit_models/imagenet21k+imagenet2012/ViT-B_16-224.npz"
LABELS = "bit_models/ilsvrc2012_wordnet_lemmas.txt"
SHA = "c0ffee" * 6 + "c0ff"


@dataclass
class StandIn:
    """What is served, how it misbehaves, and what was asked.

    hub: owner/name -> file name -> bytes. bucket: path -> bytes.
    cut: file name -> after how many bytes the connection drops, one entry a request.
    damaged: file names whose last byte arrives changed.
    status: owner/name -> (status, X-Error-Code) instead of an answer.
    """

    hub: dict[str, dict[str, bytes]] = field(default_factory=dict)
    bucket: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    ignores_range: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def ranges(self, name: str) -> list[str | None]:
        """The Range header of every GET for that file, redirects left out."""
        return [
            requested
            for method, path, requested in self.asked
            if method == "GET" and path.endswith(name) and "/resolve/" not in path
        ]


def serve(stand_in: StandIn) -> ThreadingHTTPServer:
    """The server, not started; it knows its address already."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).removeprefix("/")
            stand_in.asked.append((self.command, path, self.headers.get("Range")))
            if path in stand_in.bucket:
                data = stand_in.bucket[path]
                md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
                return self.file(path, data, body, {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"})
            kind, _, rest = path.partition("/")
            if (kind, rest[:7]) == ("api", "models/"):
                return self.model(rest.removeprefix("models/"))
            if kind == "cdn":
                repo, _, name = rest.rpartition("/")
                return self.file(name, stand_in.hub[repo][name], body, {"ETag": f'"{SHA}"'})
            repo, _, name = path.partition(f"/resolve/{SHA}/")
            if name in stand_in.hub.get(repo, {}):
                location = f"{stand_in.url}/cdn/{repo}/{name}"
                return self.send(302, {"Location": location, "X-Repo-Commit": SHA})
            return self.send(404)

        def model(self, repo: str) -> None:
            stand_in.tokens.add(self.headers.get("Authorization"))
            if repo in stand_in.status:
                status, code = stand_in.status[repo]
                return self.send(status, {"X-Error-Code": code})
            if repo not in stand_in.hub:
                return self.send(401, {"X-Error-Code": "RepoNotFound"})
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": "0" * 40}
                | ({"lfs": {"sha256": hashlib.sha256(data).hexdigest()}} if name.endswith("tensors") else {})
                for name, data in stand_in.hub[repo].items()
            ]
            model = {"id": repo, "sha": SHA, "siblings": siblings, "cardData": {"license": "apache-2.0"}}
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(model).encode())

        def file(self, path: str, data: bytes, body: bool, headers: dict[str, str]) -> None:
            name = path.rpartition("/")[2]
            start, status = 0, 200
            if name in stand_in.damaged:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if (requested := self.headers.get("Range")) and not stand_in.ignores_range:
                start, status = int(requested.removeprefix("bytes=").removesuffix("-")), 206
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            stop = stand_in.cut[name].pop(0) if body and stand_in.cut.get(name) else len(data)
            self.send(status, headers, data[start:], body=body, stop=stop)

        def send(
            self,
            status: int,
            headers: dict[str, str] | None = None,
            data: bytes = b"",
            *,
            body: bool = True,
            stop: int | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[:stop])
                self.close_connection = stop is not None and stop < len(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    return server
