"""The page, served: Gradio within an application of ours that says who may ask for what.

Only this machine is listened to unless told otherwise; a page of another site can neither read nor post here (hosts and
origins are looked at), and what the page itself may load is what this server has.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from changeanywhere.errors import ConfigError
from changeanywhere.studio.options import LOOPBACK, StudioOptions
from changeanywhere.studio.studio import Studio
from changeanywhere.terminal import say

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'; frame-ancestors 'none'"
)
"""Gradio starts from scripts within its page and compiles templates, so that those two words cannot go; nothing that
the page shows comes to stand among its scripts, and no other server is asked for anything."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Doorkeeper:
    """Refuses hosts and origins that are not ours, and bodies that are too large or do not say how large; says what a
    page may load."""

    def __init__(self, app: ASGIApp, studio: Studio) -> None:
        self._app, self._studio = app, studio
        self._local = studio.options.host in LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # Gradio streams over HTTP: there are no sockets to serve
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self.refusal(given, scope["method"]):
            await _plain(send, 403, refusal)
            return
        unsized = scope["method"] == "POST" and "content-length" not in given
        if unsized or "transfer-encoding" in given:  # browsers say how much they send
            await _plain(send, 411, "a body without content-length")
            return
        limit = (self._studio.options.max_upload_mb + 1) * 1_000_000
        size = given.get("content-length", "0")
        if not size.isdecimal() or int(size) > limit:
            await _plain(send, 413, f"more than {self._studio.options.max_upload_mb} MB (--max-upload-mb)")
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.decode("latin-1") not in HEADERS]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        with suppress(ClientDisconnect):  # a page that was closed while it sent something
            await self._app(scope, receive, answer)

    def refusal(self, given: dict[str, str], method: str) -> str:
        """Why a request is not answered; "" where it is. Names of this machine only, where it alone is served: a page
        elsewhere can give a name of its own this address."""
        try:
            host, origin = urlsplit(f"//{given.get('host', '')}"), urlsplit(given.get("origin", ""))
        except ValueError:  # [ without ]
            return "a host or origin that is no address"
        if self._local and host.hostname not in LOOPBACK:
            return "this studio serves 127.0.0.1 alone (--host)"
        if "origin" in given and origin.netloc != host.netloc:
            return "a page of another site asked"
        if method not in ("GET", "HEAD", "POST", "OPTIONS"):
            return "no such method"
        return ""


async def _plain(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def listening(options: StudioOptions) -> socket.socket:
    """A socket that is bound; :class:`ConfigError` for an address or port that cannot be had."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)  # whoever asks before the page is ready waits for it
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"host {options.host}, port {options.port}: cannot be listened to ({error.strerror or error}); "
            "give another --port, or 0 for any that is free"
        ) from error
    return bound


def serve(options: StudioOptions) -> None:
    """``changeanywhere studio``: until Ctrl-C."""
    started = time.perf_counter()
    studio = Studio(options)
    try:
        bound = listening(options)
        app = application(studio)
        import uvicorn

        port = bound.getsockname()[1]
        name = f"[{options.host}]" if ":" in options.host else options.host
        say(f"studio: http://{name}:{port}  (ready after {time.perf_counter() - started:.1f} s; Ctrl-C ends it)")
        if options.host not in LOOPBACK:
            say("whoever reaches this address may use it: there is no password", error=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3, ws="none")
        with suppress(KeyboardInterrupt):  # the way to end it: nothing is interrupted
            uvicorn.Server(config).run(sockets=[bound])
        say("studio: ended")
    finally:
        studio.close()


def application(studio: Studio) -> Any:
    """The ASGI application of a studio."""
    from changeanywhere.studio.light import import_gradio

    uploads = studio.sessions.root / "gradio"
    uploads.mkdir()
    gradio = import_gradio(str(uploads))
    from fastapi import FastAPI

    from changeanywhere.studio.page import LOOK, build
    from changeanywhere.studio.reports import add_reports

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_reports(app, studio)
    size = f"{studio.options.max_upload_mb}mb"
    gradio.mount_gradio_app(
        app, build(studio), "/", max_file_size=size, footer_links=[], run_history=False, pwa=False, ssr_mode=False,
        enable_monitoring=False, mcp_server=False, show_error=False, app_kwargs={"docs_url": None}, **LOOK,
    )  # fmt: skip
    return Doorkeeper(app, studio)
