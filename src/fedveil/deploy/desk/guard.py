"""Who may call the desk: the browser that opened its one-time link, from the desk's own pages, and nobody else.

The desk listens on the loopback address, which every user of the machine and every web page in their browser can
reach. So each request is checked, before anything else reads it:

- ``Host`` must be the desk's own address. A name that an attacker lets point to 127.0.0.1 (DNS rebinding) is refused.
- ``Sec-Fetch-Site`` must not say that another page caused the request, and ``Origin`` of a form must be the desk's.
- The path must begin with a random word, and the session's cookie, which is sent for that path only, must be there.
  Cookies are shared between all ports of a host: without the word, a server of another local user would receive it.
- A form must hold the session's own token.

The one-time link carries a key of 256 bits, which is used up by the first request that presents it.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COOKIE", "HEADERS", "Guard", "Session"]

COOKIE = "fedveil-desk"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Sent with every answer. No page holds a script, and none may run."""

_LARGEST = 65_536


@dataclass(slots=True)
class Session:
    """The secrets of one run of the desk.

    Attributes:
        port: where it listens.
        key: of the one-time link; empty once it was used.
        word: first part of every path.
        cookie: what the browser has to send.
        token: what every form has to hold.
    """

    port: int
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    word: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def link(self) -> str:
        """The one-time link."""
        return f"http://127.0.0.1:{self.port}/open?key={self.key}"

    @property
    def home(self) -> str:
        """The path of the first page."""
        return f"/{self.word}/"

    def unlock(self, key: str) -> bool:
        """Whether this is the link's key; it is used up by that."""
        right = bool(self.key) and _same(key, self.key)
        if right:
            self.key = ""
        return right

    def refusal(self, method: str, path: str, headers: Mapping[str, list[str]]) -> tuple[int, str] | None:
        """Why a request is refused, as status and words; None if it may go on."""
        own = f"127.0.0.1:{self.port}"
        if headers.get("host") != [own]:
            return 421, "this is not the desk's address"
        caused_by = headers.get("sec-fetch-site", ["none"])
        if caused_by not in (["none"], ["same-origin"]):
            return 403, "another page caused this request"
        if method not in ("GET", "POST"):
            return 405, "the desk knows GET and POST"
        if method == "POST":
            length = headers.get("content-length", [""])[0]
            if headers.get("origin") != [f"http://{own}"]:
                return 403, "this form is not the desk's"
            if headers.get("content-type") != ["application/x-www-form-urlencoded"]:
                return 415, "this is not a form"
            if not length.isdigit() or int(length) > _LARGEST:
                return 413, "this form is too long"
        if path == "/open":
            return None
        if not (path.startswith(self.home) and _same(_cookie(headers), self.cookie)):
            return 403, "open the link that `fedveil site desk` printed; it works once"
        return None


class Guard:
    """ASGI middleware: refuses what `Session.refusal` names, and adds `HEADERS` to every answer."""

    def __init__(self, app: Any, session: Session) -> None:
        self._app, self._session = app, session

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward a request, or refuse it before its body is read."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        refused = self._session.refusal(scope["method"], scope["path"], headers)
        if refused is None:
            await self._app(scope, receive, guarded)
            return
        status, words = refused
        plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await guarded({"type": "http.response.start", "status": status, "headers": plain})
        await guarded({"type": "http.response.body", "body": words.encode() + b"\n"})


def _cookie(headers: Mapping[str, list[str]]) -> str:
    """The session's cookie among those that the browser sent."""
    for line in headers.get("cookie", []):
        for part in line.split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE:
                return value
    return ""


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
