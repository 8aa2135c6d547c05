"""What a server is started with: where it listens, who may ask, and how much at once."""

import ipaddress
import os
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.recordings import MAX_RECORDING_S
from launcher.errors import ConfigError

TOKEN_VARIABLE = "CHORUS_SERVE_TOKEN"  # noqa: S105 (the name of a variable)
# What an Authorization header can carry, and long enough not to be guessed.
TOKEN = re.compile(r"[\x21-\x7e]{16,512}")
MAX_TOKEN_FILE_BYTES = 4096
MAX_PORT = 65_535


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, and its token; None where everybody who reaches it may ask.

    max_running: requests and streams that are accepted at once. timeout_s: from the acceptance of a request to its
    answer, and between two messages of a stream. batch_size and batch_wait_s: a batch is recognised when it has so many
    recordings, or the first has waited so long. stop_s: what requests have to finish when the server is stopped.
    """

    max_bytes: int = 25 * 2**20
    max_seconds: float = 1800.0
    max_running: int = 32
    timeout_s: float = 120.0
    batch_size: int = 16
    batch_wait_s: float = 0.005
    stop_s: float = 30.0
    uses_ffmpeg: bool = False
    is_local: bool = True
    token: str | None = None

    def check(self) -> None:
        """ConfigError for a limit that would refuse everything, or is none."""
        limits = {
            "--max-mb": self.max_bytes,
            "--max-seconds": self.max_seconds,
            "--max-requests": self.max_running,
            "--timeout": self.timeout_s,
            "--batch": self.batch_size,
            "--stop-seconds": self.stop_s,
        }
        for option, value in limits.items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"{option} is {value:g}. Give a number above 0.")
        if not 0 <= self.batch_wait_s <= 1:
            raise ConfigError(f"--batch-wait-ms is {1000 * self.batch_wait_s:g}. Give 0 to 1000 milliseconds.")
        if self.max_seconds > MAX_RECORDING_S:
            raise ConfigError(
                f"--max-seconds is {self.max_seconds:g}, and no recording may last more than {MAX_RECORDING_S:g} s."
            )
        require_token(self.is_local, self.token)


def require_token(is_local: bool, token: str | None) -> None:
    """ConfigError for a server that other machines reach and that has no token."""
    if not is_local and token is None:
        raise ConfigError(
            "A server that other machines reach needs a token, and there is none. Put one of 16 characters or more "
            f"into the environment as {TOKEN_VARIABLE} or into a file of mode 0600 that --token-file names; or "
            "listen on 127.0.0.1."
        )


def read_token(path: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token in a file that its owner alone reads, else that of the environment, else None; or a ConfigError."""
    if path is None:
        token = environment.get(TOKEN_VARIABLE)
        place = TOKEN_VARIABLE
    else:
        place = str(path)
        try:
            # The file that is looked at is the one that is read; a named pipe is not waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
                    raise ConfigError(
                        f"The token in {path} is not one that you alone can read: it needs to be a file of yours of "
                        f"mode 0600. `chmod 600 {path}`, and take a new token if others could read it."
                    )
                token = file.read(MAX_TOKEN_FILE_BYTES).decode("ascii", "replace").strip()
        except OSError as error:
            raise ConfigError(
                f"The token in {path} cannot be read: {error.strerror}. Name a file of mode 0600."
            ) from None
    if token is None:
        return None
    if not TOKEN.fullmatch(token):
        raise ConfigError(
            f"The token in {place} is none: it needs 16 to 512 letters, digits and signs of ASCII, without spaces. "
            "`python -c 'import secrets; print(secrets.token_urlsafe())'` makes one."
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound there and not open yet. ConfigError where that cannot be."""
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"--port is {port}. Give 0, for any that is free, to {MAX_PORT}.")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except OSError:
            opened.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"The server cannot listen on {host}, port {port}: {reason}. Choose another --port, or an address of this "
            "machine for --host."
        ) from None
    return opened


def is_loopback(opened: socket.socket) -> bool:
    """Whether this machine alone reaches the socket."""
    return ipaddress.ip_address(opened.getsockname()[0]).is_loopback
