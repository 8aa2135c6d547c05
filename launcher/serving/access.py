"""Who may ask a server: on this machine those who call it by its name, from elsewhere those who have its token.

A page of another site cannot use a server on this machine with its reader's rights: its Origin is refused, and so is a
name that was made to point here (DNS rebinding).
"""

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from launcher.serving.refusals import RefusedError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
# A browser cannot set the header of a WebSocket; it offers the token as a protocol, in hexadecimal.
TOKEN_PROTOCOL = "chorus-token."  # noqa: S105 (no token)


def check_access(scope: Scope, is_local: bool, token: str | None, open_paths: Collection[str]) -> None:
    """RefusedError for a request of another site, under another name, or without the token where its path needs it."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if is_local and _host_name(f"//{host}") not in LOCAL_NAMES:
        raise RefusedError(
            403, "This server answers to localhost, 127.0.0.1 and [::1] alone. Ask it by one of them.", "host"
        )
    origin = headers.get("origin")
    if origin is not None and _origin_host(origin) != host.lower():
        raise RefusedError(
            403, "Pages of other sites may not use this server. Open its own page, or ask it from a program.", "origin"
        )
    if token is not None and scope["path"] not in open_paths:
        given = _given_token(scope, headers)
        # Compared in constant time: how long it takes tells nothing of how much is right.
        if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            raise RefusedError(
                401, "The server's token is missing or wrong. Send it as `Authorization: Bearer TOKEN`.", "token"
            )


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _origin_host(origin: str) -> str:
    """The host and port of an Origin, which browsers write in small letters."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _given_token(scope: Scope, headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    for protocol in scope.get("subprotocols", []):
        if protocol.startswith(TOKEN_PROTOCOL):
            try:
                return bytes.fromhex(protocol.removeprefix(TOKEN_PROTOCOL)).decode("ascii")
            except ValueError:
                return ""
    return ""
