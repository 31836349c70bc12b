"""An S3 server on this machine (moto's) behind a proxy that serialises conditional puts and breaks what it is told to.

Run by ``Server``: moto in a thread, and the proxy in another. Faults are given to requests in the order they come.
"""

from __future__ import annotations

import http.client
import http.server
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from moto.server import ThreadedMotoServer

Fault = Callable[["Proxy"], bool]
"""Does something to a request; True: it was answered, or never will be."""


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, one conditional put at a time."""

    protocol_version = "HTTP/1.1"
    state: Server

    def pass_on(self) -> None:
        self.body = self.read_body()
        fault = self.state.next_fault(self)
        if fault is not None and fault(self):
            return
        self.forward()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = pass_on  # noqa: N815

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def forward(self, answer: bool = True) -> None:
        conditional = self.headers.get("If-None-Match") == "*"
        lock = self.state.conditional if conditional else threading.Lock()
        with lock:
            status, headers, content = self.state.ask(self.command, self.path, self.body, dict(self.headers))
        self.state.seen[(self.command, status)] += 1
        if not answer:
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = {n.lower(): v for n, v in headers}.get("content-length", str(len(content)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        return


def unavailable(request: Proxy) -> bool:
    """503, as S3 says when it is asked too often."""
    request.send_response(503)
    request.send_header("Content-Length", "0")
    request.end_headers()
    return True


def lost_answer(request: Proxy) -> bool:
    """Done, and the connection breaks before it is said."""
    request.forward(answer=False)
    request.hang_up()
    return True


def half_upload(request: Proxy) -> bool:
    """The connection breaks half way: the service keeps nothing."""
    request.hang_up()
    return True


def slow(request: Proxy) -> bool:
    """Answered, late."""
    time.sleep(1.5)
    return False


class Server:
    """moto and the proxy before it; ``address`` of the proxy is what a client gets."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.moto.start()
        self._place = self.moto.get_host_and_port()
        self.conditional = threading.Lock()
        self.seen: Counter[tuple[str, int]] = Counter()
        self.faults: list[tuple[Callable[[Proxy], bool], Fault]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (Proxy,), {"state": self})
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._proxy.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        status, _, content = self.ask("PUT", "/bucket", b"", {})
        assert status == 200, content

    def ask(
        self, command: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Of moto itself."""
        host, port = self._place
        connection = http.client.HTTPConnection(host, port, timeout=60)
        headers = {n: v for n, v in headers.items() if n.lower() not in ("connection", "expect", "content-length")}
        if command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        try:
            connection.request(command, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def break_next(self, fault: Fault, count: int = 1, command: str = "PUT", part: str = "") -> None:
        """The next ``count`` requests of this command whose path holds ``part`` go wrong."""

        def fits(request: Proxy) -> bool:
            return request.command == command and part in request.path

        self.faults += [(fits, fault)] * count

    def next_fault(self, request: Proxy) -> Fault | None:
        with self._lock:
            for place, (fits, fault) in enumerate(self.faults):
                if fits(request):
                    del self.faults[place]
                    return fault
        return None

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self.moto.stop()
