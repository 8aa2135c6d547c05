"""Credentials in texts that go to people: URLs with a password, a token or a signature.

`redact` stands before every sink of text that may hold a URL of a user: logs, events, errors, reports, W&B.
"""

import logging
import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
# The user's part of a URL. Azure's `container@account` and the user of ssh are names, not secrets; what stands alone
# before the host of a web server is a token.
# Its scheme is looked for backwards: a search that began with it would read what follows once for each letter.
USER_INFO = re.compile(r"://([^\s/?#\"'<>]*)@")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
MAX_SCHEME_CHARACTERS = 31
WEB_SCHEMES = ("http", "https", "ftp", "ftps", "git", "webdav", "dav")
# A parameter of a URL or of a connection string.
PARAMETER = re.compile(r"([?&;#])([^\s=&;?#\"'<>]{1,80})=([^\s&;#\"'<>]+)")
SECRET_NAME = re.compile(
    r"signature|token|secret|passw|pwd|credential|api[-_]?key|access[-_]?key|account[-_]?key|auth\b|^(sig|key|pass|code)$",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return a text in which the passwords, tokens and signatures of URLs are hidden."""
    return PARAMETER.sub(_hide_parameter, USER_INFO.sub(_hide_user, text))


def redact_values(values: Any) -> Any:
    """Return plain values (mappings, lists, texts, numbers) in whose texts secrets are hidden."""
    if isinstance(values, str):
        return redact(values)
    if isinstance(values, dict):
        return {key: redact_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value) for value in values]
    return values


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without the secrets of URLs."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def has_credentials(text: str) -> bool:
    """Return whether a text holds a URL with a password, a token or a signature."""
    return "://" in text and redact(text) != text


def _hide_user(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - MAX_SCHEME_CHARACTERS) : match.start()]
    scheme = SCHEME.search(before)
    if scheme is None:
        return match[0]
    user, colon, password = match[1].partition(":")
    is_name = not colon and scheme[0].lower().rpartition("+")[2] not in WEB_SCHEMES
    if is_name or HIDDEN in (password, match[1]):
        return match[0]
    if not colon:
        return f"://{HIDDEN}@"
    return f"://{user}:{HIDDEN}@"


def _hide_parameter(match: re.Match[str]) -> str:
    # Names may be written with escapes: X%2DAmz%2DSignature.
    if not SECRET_NAME.search(unquote(match[2])):
        return match[0]
    return f"{match[1]}{match[2]}={HIDDEN}"
