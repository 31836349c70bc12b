"""Services on this machine, S3 (moto's) and Azure (azurite), behind a proxy that breaks what it is told to.

The proxy passes conditional puts on one at a time, which moto needs. Requests get their faults in the order they come.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import http.server
import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer

Fault = Callable[["Proxy"], bool]
"""Does something to a request; True: it was answered, or never will be."""


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, one conditional put at a time."""

    protocol_version = "HTTP/1.1"
    state: Service

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


class Service:
    """What answers at ``place``, and the proxy before it; ``address`` of the proxy is what a client gets."""

    scheme: str
    refused: int
    """What a conditional put is told that loses."""
    deletes: tuple[str, str]
    """The method by which objects are removed, and what its address holds."""
    secret = base64.b64encode(b"a very secret key of these tests").decode()

    def __init__(self, place: tuple[str, int]) -> None:
        self._place = place
        self.conditional = threading.Lock()
        self.seen: Counter[tuple[str, int]] = Counter()
        self.faults: list[tuple[Callable[[Proxy], bool], Fault]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (Proxy,), {"state": self})
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._proxy.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    def environment(self, address: str | None = None) -> dict[str, str]:
        """What leads a client to this service, or to another address."""
        raise NotImplementedError

    def put_beside(self, path: str, body: bytes) -> None:
        """What another client puts, past the proxy."""
        raise NotImplementedError

    def ask(
        self, command: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Of the service itself."""
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


class Server(Service):
    """S3, as moto has it."""

    scheme = "s3"
    refused = 412
    deletes = "POST", "delete"

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.moto.start()
        super().__init__(self.moto.get_host_and_port())
        self.put_beside("/bucket", b"")

    def environment(self, address: str | None = None) -> dict[str, str]:
        """See :class:`Service`."""
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT_URL": address or self.address}

    def put_beside(self, path: str, body: bytes) -> None:
        """See :class:`Service`."""
        status, _, content = self.ask("PUT", path, body, {})
        assert status == 200, content

    def close(self) -> None:
        super().close()
        self.moto.stop()


AZURITE = Path(__file__).parents[1] / ".work" / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT, VERSION = "tester", "2021-12-02"


def find_azurite() -> str | None:
    """Its command, where ``make test-clouds`` or anybody installed it."""
    return shutil.which("azurite-blob") or (str(AZURITE) if AZURITE.exists() else None)


class Azurite(Service):
    """Azure's blobs, as Microsoft's emulator has them; with an account of its own."""

    scheme = "az"
    refused = 409
    deletes = "POST", "comp=batch"  # obstore 0.12; a DELETE before

    def __init__(self) -> None:
        command = [find_azurite() or "azurite-blob", "--blobHost=127.0.0.1", "--blobPort=0", "--inMemoryPersistence"]
        self._process = subprocess.Popen(
            [*command, "--skipApiVersionCheck", "--disableTelemetry", "--silent"],
            env=os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.secret}"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = ""
        while not (found := re.search(r"listens on http://127.0.0.1:(\d+)", said)):
            line = self._process.stdout.readline()
            assert line, f"azurite ended: {said}"
            said += line
        super().__init__(("127.0.0.1", int(found.group(1))))
        self.put_beside(f"/{ACCOUNT}/bucket?restype=container", b"")

    def environment(self, address: str | None = None) -> dict[str, str]:
        """See :class:`Service`."""
        keys = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": self.secret}
        return keys | {"AZURE_STORAGE_ENDPOINT": f"{address or self.address}/{ACCOUNT}"}

    def put_beside(self, path: str, body: bytes) -> None:
        """See :class:`Service`. Signed as Azure's "Authorize with Shared Key" says."""
        parts, headers = urlsplit(path), {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
        if body:
            headers["x-ms-blob-type"] = "BlockBlob"
        lines = [f"{name}:{value}" for name, value in sorted(headers.items())]
        lines += [f"/{ACCOUNT}{parts.path}", *(query.replace("=", ":") for query in parts.query.split("&") if query)]
        text = "\n".join(["PUT", "", "", str(len(body) or ""), *[""] * 8, *lines])
        digest = hmac.new(base64.b64decode(self.secret), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        status, _, content = self.ask("PUT", path, body, headers)
        assert status == 201, content

    def close(self) -> None:
        super().close()
        self._process.terminate()
        self._process.communicate()
