"""A proxy before an S3 endpoint that answers some requests with faults, as a rule says."""

import hashlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Rule = Callable[[str, str], str | None]
"""(method, path without its query) -> a fault, or None. Called once for each request, by one thread at a time."""

ERRORS = {
    "internal error": (500, "InternalError"),
    "slow down": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "no bucket": (404, "NoSuchBucket"),
}
"""Faults that are answers: status and code. The others:

* reset: the connection is reset, and the store hears nothing of the request;
* lost answer: the same, but the store has carried the request out;
* broken body: half of what a GET should give comes, then a reset;
* delay: the answer comes 50 ms later;
* silence: none comes at all, until the proxy ends.
"""
PASSING = ("internal error", "slow down", "reset", "lost answer", "broken body", "delay")
"""Of these, a client that tries again sees no more than some time passing."""


class Seeded:
    """`share` of all requests, by seed, method, path and how often that came before: at most two in a row of one kind
    of request, so that none fails for good."""

    def __init__(self, seed: int, share: float):
        self.seed, self.share = seed, share
        self._seen: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def __call__(self, method: str, path: str) -> str | None:
        request = f"{method} {path}"
        digest = hashlib.sha256(f"{self.seed} {request} {self._seen[request]}".encode()).digest()
        self._seen[request] += 1
        if self._in_a_row[request] == 2 or int.from_bytes(digest[:8], "big") / 2**64 >= self.share:
            self._in_a_row[request] = 0
            return None
        self._in_a_row[request] += 1
        return PASSING[digest[8] % len(PASSING)]


class Proxy:
    """What came of the requests, and whether those to come are disturbed."""

    def __init__(self, url: str):
        self.url = url
        self.faults: Counter[tuple[str, str]] = Counter()
        """(fault, method) -> how many."""
        self.requests = 0

    def count(self, fault: str) -> int:
        return sum(count for (name, _), count in self.faults.items() if name == fault)


@contextmanager
def proxy(rule: Rule, endpoint: str = "", *, conditional: bool = False) -> Iterator[Proxy]:
    """A proxy on loopback.

    Args:
        endpoint: of the store; may be left out where `rule` lets nothing through.
        conditional: refuse a put with If-None-Match of what was put before, which some stores do not.
    """
    upstream, lock, ended = urlsplit(endpoint).netloc, threading.Lock(), threading.Event()
    there: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self._body()
            path = urlsplit(self.path).path
            with lock:
                found.requests += 1
                fault = rule(self.command, path)
                if fault == "broken body" and self.command != "GET":
                    fault = "reset"
                if fault:
                    found.faults[fault, self.command] += 1
                taken = conditional and "If-None-Match" in self.headers and path in there
            if fault in ERRORS:
                self._answer_error(*ERRORS[fault])
            elif fault == "silence":
                ended.wait()
                self._reset()
            elif fault == "reset":
                self._reset()
            elif taken:
                self._answer_error(412, "PreconditionFailed")
            else:
                self._pass_on(path, body, fault)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def _pass_on(self, path: str, body: bytes, fault: str | None) -> None:
            status, headers, answer = self._ask(body)
            if self.command in ("PUT", "DELETE") and status < 300:
                with lock:
                    (there.add if self.command == "PUT" else there.discard)(path)
            if fault == "lost answer":
                self._reset()
                return
            if fault == "delay":
                time.sleep(0.05)
            broken = fault == "broken body"
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            # A HEAD tells the length of what a GET would give.
            length = dict(headers).get("Content-Length") if self.command == "HEAD" else str(len(answer))
            if length is not None and status != 204:
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2] if broken else answer)
            if broken:
                time.sleep(0.05)  # a reset that is quicker than the client takes the answer's head with it
                self._reset()

        def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            """The store's answer: status, headers, body. The signature covers Host, but no header of the transport."""
            connection = HTTPConnection(upstream, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect", "transfer-encoding", "content-length"):
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(parts)

        def _answer_error(self, status: int, code: str) -> None:
            text = (
                f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>of a test</Message></Error>"
            )
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # the server would say goodbye

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that have gone
    found = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
