"""Requests that are no HTTP, lie about their length, come too slowly, or never end."""

import contextlib
import itertools
import random
import socket
import threading
import time

import pytest

from service.cli.protocol import HEAD_S
from service.cli.server import MAX_HEADER_BYTES
from tests.api.watched_server import CLOSED, WatchedServer, chunked, request

TIMEOUT_S = 4
"""The server's own limit in this file, so that nothing has to wait for 30 s."""
KIB = 1024


SETTINGS = {"TIMEOUT_S": str(TIMEOUT_S)}
pytestmark = pytest.mark.usefixtures("unharmed")


def head(*lines: str, first: str = "POST /predict HTTP/1.1") -> bytes:
    return "\r\n".join([first, "Host: test", *lines, "", ""]).encode("latin-1")


def get(target: str) -> bytes:
    return head(first=f"GET {target} HTTP/1.1")


HELLO = bytes.fromhex("16030102000100 01fc0303") + random.Random(1).randbytes(500)
"""How a TLS client greets."""

NO_HTTP = {
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9, to the model": b"POST /predict\r\n\r\n",
    "a version of letters": b"GET / HTTP/x.y\r\nHost: test\r\n\r\n",
    "TLS": HELLO + b"\r\n\r\n",
    "noise": random.Random(2).randbytes(5000) + b"\r\n\r\n",
    "NULs": bytes(5000) + b"\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": head("Host: other", first="GET / HTTP/1.1"),
    "a header without a colon": head("nonsense"),
    "a header without a name": head(": value"),
    "a space before the colon": head("Content-Length : 5") + b"12345",
    "a NUL in a header": head("X-Note: a\0b"),
    "a NUL in the path": get("/predict\0"),
    "a space in the path": get("/pre dict"),
    "letters beyond ASCII in the path": get("/pr\xe4dict"),
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http(server: WatchedServer, name: str) -> None:
    """400 and the connection's end."""
    with server.wire() as wire:
        wire.send(NO_HTTP[name])
        assert wire.answer().status == 400
        assert wire.closed()


TARGETS = {
    "an encoded NUL": ("/predict%00", {404}),
    "an encoded NUL in a parameter": ("/models?a=%00", {200, 422}),
    "broken encoding": ("/%ff%fe%zz%", {404}),
    "dots": ("/../../../../etc/passwd", {404}),
    "encoded dots": ("/%2e%2e/%2e%2e/etc/passwd", {404}),
    "slashes": ("//" * 1000, {404}),
    "a whole address": ("http://elsewhere:99999/predict", {404}),
    "a star": ("*", {404}),
    "a long path": ("/" + "a" * 60_000, {404}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_odd_targets(server: WatchedServer, name: str) -> None:
    target, statuses = TARGETS[name]
    answer = server.exchange(get(target))
    assert answer.status in statuses, answer


@pytest.mark.parametrize("start", [b"PRI * HTTP/2.0\r\n\r\nSM", b"GET /x HTTP/3.0", b"GET /x HTTP/1.0"])
def test_other_versions(server: WatchedServer, start: bytes) -> None:
    assert server.exchange(start + b"\r\n\r\n").status == 404


@pytest.mark.parametrize(
    "query",
    [
        "a=" + "b" * 60_000,
        "&".join(f"a{n}=" for n in range(8000)),
        "top_k=" + "9" * 60_000,
        "&=" * 30_000,
        "model=%00",
        "model=" + "../" * 10_000,
        "top_k=1e5",
        "top_k=%EF%BC%91",
        "top_k=1&top_k=2",
    ],
    ids=lambda query: query[:12],
)
def test_odd_parameters(server: WatchedServer, query: str) -> None:
    answer = server.post(server.good, f"/predict?{query}")
    assert answer.status in (200, 404, 422), answer


HEADERS = {
    "a request id": ("X-Request-ID: " + "\t" * 60_000, {200}),
    "a timeout of digits": ("X-Request-Timeout: " + "9" * 60_000, {200, 422}),
    "a timeout that is not a number": ("X-Request-Timeout: nan", {422}),
    "an infinite timeout": ("X-Request-Timeout: inf", {422}),
    "a negative timeout": ("X-Request-Timeout: -1", {422}),
    "no time at all": ("X-Request-Timeout: 1e-300", {504}),
    "accepted types": ("Accept: " + "a/b;q=0.1," * 6000, {200}),
    "accepted nonsense": ("Accept: " + ";q=" * 20_000, {200}),
    "a type": ("Content-Type: " + "image/" * 10_000, {200}),
    "an encoding": ("Content-Encoding: gzip, gzip, gzip", {200, 415}),
    "a length of its own": ("X-Content-Length: -1", {200}),
    "an upgrade": ("Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x", {200}),
    "an upgrade to HTTP/2": (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x",
        {200},
    ),
    "a range": ("Range: bytes=" + "0-," * 20_000, {200}),
    "a cookie": ("Cookie: " + "a=b;" * 15_000, {200}),
    "a key": ("Authorization: Bearer " + "k" * 60_000, {200}),
    "many headers": ("\r\n".join(f"X-{n}: " for n in range(6000)), {200}),
    "control characters": ("X-Note: \x01\x07\x1b", {200, 400}),
    "a folded header": ("X-Note: a" + "\r\n b" * 15_000, {200, 400}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_that_fit(server: WatchedServer, name: str) -> None:
    line, statuses = HEADERS[name]
    answer = server.post(server.good, "/attention/rollout", line)
    assert answer.status in statuses, answer


HUGE = {
    "a header": head("X-Note: " + "a" * KIB * KIB),
    "a header without an end": b"GET / HTTP/1.1\r\nX-Note: " + b"a" * 10 * KIB * KIB,
    "headers": head(*[f"X-{n}: {n}" for n in range(20_000)]),
    "headers without an end": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2_000_000,
    "a query of 1 MB": get("/models?a=" + "b" * KIB * KIB),
    "a path of 1 MB": get("/" + "b" * KIB * KIB),
    "a method of 1 MB": b"G" * KIB * KIB,
    "line ends": b"\r\n" * KIB * KIB,
    "spaces": b"GET" + b" " * KIB * KIB,
    "folds": b"GET / HTTP/1.1\r\nHost: a\r\nX-Note: a\r\n" + b" b\r\n" * KIB * KIB,
}


@pytest.mark.parametrize("name", HUGE)
def test_heads_that_are_too_large(server: WatchedServer, name: str) -> None:
    """A refusal or the connection's end; never more than the largest head is held."""
    assert len(HUGE[name]) > MAX_HEADER_BYTES
    with server.wire() as wire:
        wire.send(HUGE[name])
        answer = wire.answer()
        assert answer == CLOSED or 400 <= answer.status < 500, answer
        assert wire.closed()


LENGTHS = {
    "negative": "-1",
    "a sign": "+5",
    "no number": "many",
    "nothing": "",
    "a fraction": "5.0",
    "hexadecimal": "0x5",
    "a space inside": "1 2",
    "two in one": "5, 6",
    "digits of another script": "\xb2",
    "an exponent": "1e3",
    "sixty thousand digits": "9" * 60_000,
    "two": "5\r\nContent-Length: 6",
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_that_are_none(server: WatchedServer, name: str) -> None:
    with server.wire() as wire:
        wire.send(head(f"Content-Length: {LENGTHS[name]}") + server.good)
        assert wire.answer().status == 400
        assert wire.closed()


def test_a_length_beyond_all_memory(server: WatchedServer) -> None:
    answer = server.exchange(head("Content-Length: 99999999999999999999"[:34]) + server.good)
    assert (answer.status, answer.problem) == (413, "too-large")


def test_a_length_that_is_too_short(server: WatchedServer) -> None:
    """The picture is cut, and the rest of it is no request."""
    with server.wire() as wire:
        wire.send(head("Content-Length: 1000") + server.good + b"\r\n\r\n")
        assert wire.answer().problem == "bad-image"
        assert wire.answer().status == 400
        assert wire.closed()


@pytest.mark.parametrize("line", [[], ["X-Request-Timeout: 1"]])
def test_a_length_that_is_too_long(server: WatchedServer, line: list[str]) -> None:
    """The rest never comes: 504 when the time is over, the request's or the server's."""
    announced = f"Content-Length: {len(server.good) + 1}"
    with server.wire() as wire:
        wire.send(head(announced, *line) + server.good)
        answer = wire.answer()
        assert (answer.status, answer.problem) == (504, "deadline-exceeded")
        assert wire.closed()


def test_a_body_that_is_hung_up_on(server: WatchedServer) -> None:
    """Half a body, then the client's end of the connection closes: so does the server's."""
    with server.wire() as wire:
        wire.send(request(server.good)[:-100])
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.answer().status in (0, 400)


def test_an_expectation_that_is_never_met(server: WatchedServer) -> None:
    """`Expect: 100-continue`, and then no body at all."""
    with server.wire() as wire:
        wire.send(head("Content-Length: 1000", "Expect: 100-continue"))
        assert wire.answer().status == 100
        assert wire.answer().status == 504


def test_a_length_beside_chunks(server: WatchedServer) -> None:
    """The chunks count; nothing of the body is ever taken for another request."""
    smuggled = b"0\r\n\r\n" + get("/models")
    with server.wire() as wire:
        wire.send(chunked("/predict", f"Content-Length: {len(smuggled)}") + smuggled)
        assert wire.answer().status == 400
        answer = wire.answer()
        assert answer == CLOSED or answer.status in (200, 400), answer


CHUNKS = {
    "a size that is no number": b"many\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nabcde\r\n0\r\n\r\n",
    "a size beyond all memory": b"f" * 20 + b"\r\nabc",
    "a size of sixty thousand digits": b"1" * 60_000 + b"\r\nabc",
    "an extension without an end": b"5;" + b"a" * 10 * KIB * KIB,
    "no line end behind the data": b"5\r\nabcdefghij\r\n0\r\n\r\n",
    "a size that is too short": b"3\r\nabcdefgh\r\n0\r\n\r\n",
    "trailers without an end": b"3\r\nabc\r\n0\r\n" + b"a: b\r\n" * 2_000_000,
    "noise": random.Random(3).randbytes(5000),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_broken_chunks(server: WatchedServer, name: str) -> None:
    with server.wire() as wire:
        wire.send(chunked() + CHUNKS[name])
        answer = wire.answer()
        assert answer == CLOSED or answer.status in (400, 504), answer
        assert wire.closed()


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "identity", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked"]
)
def test_other_codings(server: WatchedServer, coding: str) -> None:
    answer = server.exchange(head(f"Transfer-Encoding: {coding}") + b"0\r\n\r\n")
    assert 400 <= answer.status < 500, answer


def test_chunks_of_one_byte(server: WatchedServer) -> None:
    """They cost the server more than the sender: ended with the time, and everyone else is served on."""
    pieces = b"1\r\n\0\r\n" * 10_000
    with server.wire() as wire:
        wire.send(chunked("/predict", "X-Request-Timeout: 2"))
        while not wire.something_came() and wire.send(pieces):
            pass
        assert wire.answer().status in (413, 504)
        assert wire.closed()


def test_an_answer_while_the_body_turns_to_noise(server: WatchedServer) -> None:
    """The refusal of a body that is too large arrives although no chunk comes after it."""
    with server.wire() as wire:
        wire.send(chunked() + b"%x\r\n" % (30 * 2**20))
        for _ in range(30):
            wire.send(bytes(2**20))
        for _ in range(10):
            wire.send(random.Random(4).randbytes(2**20))
        assert wire.answer().status == 413
        assert wire.closed()


# one behind the other


@pytest.mark.parametrize("garbage", [b"\0" * 500, b"GET /\r\n\r\n", HELLO + b"\r\n\r\n"])
def test_garbage_behind_a_request(server: WatchedServer, garbage: bytes) -> None:
    """The good requests before it are answered, in their order."""
    with server.wire() as wire:
        wire.send(request(server.good) * 5 + get("/healthz") + garbage + b"\r\n\r\n")
        assert [wire.answer().status for _ in range(7)] == [200] * 6 + [400]
        assert wire.closed()


def test_thousands_of_requests_at_once(server: WatchedServer) -> None:
    with server.wire() as wire:
        sender = threading.Thread(target=wire.send, args=[get("/healthz") * 3000])
        sender.start()
        assert {wire.answer().status for _ in range(3000)} == {200}
        sender.join()


# slowly


def test_a_byte_a_second(server: WatchedServer) -> None:
    """In the body: 504 when the time is over. In the head, or before it: the connection is closed.

    Also where the head began right behind another request.
    """
    raw = request(server.good)
    start = raw.index(b"\r\n\r\n") + 4
    with contextlib.ExitStack() as stack:
        silent, line, headers, behind, body, hasty = wires = [
            stack.enter_context(server.wire()) for _ in range(6)
        ]
        sent = {silent: iter(b""), line: iter(b"GET /" + b"a" * 99), headers: iter(b"a" * 99)}
        sent |= {behind: iter(b""), body: iter(raw[start:])}
        behind.send(get("/healthz") + b"GET /healthz HTTP/1.1\r\nHost:")
        assert behind.answer().status == 200
        headers.send(b"GET /healthz HTTP/1.1\r\nHost: test\r\nX-Note: ")
        body.send(raw[:start])
        hasty.send(b"\r\n".join([raw[: start - 4], b"X-Request-Timeout: 1", b"", b""]))
        sent[hasty] = iter(raw[start:])
        began = time.monotonic()
        came: dict[object, float] = {}
        while len(came) < len(wires):
            waited = time.monotonic() - began
            assert waited < HEAD_S + 30, (
                f"no end for {[wires.index(wire) for wire in wires if wire not in came]}"
            )
            for wire in wires:
                if wire.something_came():
                    came.setdefault(wire, waited)
                elif wire not in came:
                    wire.send(bytes(itertools.islice(sent[wire], 1)))
            time.sleep(1)
        assert [wire.answer().status for wire in (body, hasty)] == [504, 504]
        assert [wire.answer() for wire in (silent, line, headers, behind)] == [CLOSED] * 4


def test_hundreds_of_heads_without_an_end(server: WatchedServer) -> None:
    """They hold up nobody else, and hold no more than was sent."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(server.wire()).send(b"GET / HTTP/1.1\r\nX-Note: " + b"a" * 60 * KIB)
        for _ in range(20):
            assert server.post(server.good).status == 200


def test_hundreds_of_bodies_without_an_end(server: WatchedServer) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(server.wire()) for _ in range(200)]
        for wire in wires:
            wire.send(request(server.good)[:-1])
        for _ in range(20):
            assert server.post(server.good).status == 200
        assert {wire.answer().status for wire in wires} <= {503, 504}
