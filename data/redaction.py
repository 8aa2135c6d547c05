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
# A scheme of any length would be looked for anew at each letter of a long word.
USER_INFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://([^\s/?#\"'<>]*)@")
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
    scheme = match[1]
    user, colon, password = match[2].partition(":")
    is_name = not colon and scheme.lower().rpartition("+")[2] not in WEB_SCHEMES
    if is_name or password == HIDDEN or match[2] == HIDDEN:
        return match[0]
    if not colon:
        return f"{scheme}://{HIDDEN}@"
    return f"{scheme}://{user}:{HIDDEN}@"


def _hide_parameter(match: re.Match[str]) -> str:
    # Names may be written with escapes: X%2DAmz%2DSignature.
    if not SECRET_NAME.search(unquote(match[2])):
        return match[0]
    return f"{match[1]}{match[2]}={HIDDEN}"
