"""Runs the board until a signal asks it to stop."""

import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from data.redaction import RedactingFormatter

MAX_CONNECTIONS = 1000
CLOSING_S = 5


class BoardServer(uvicorn.Server):
    """uvicorn that ends its streams, and then itself, at the first signal."""

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app,
            # Nothing is taken from headers that a proxy may write, and nothing is logged about requests.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            ws="none",
            http="h11",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=CLOSING_S,
        )
        super().__init__(config)
        self._board = app.state.board
        self._is_asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not handed on: uvicorn would raise the signal again when all is done, and the exit code would be the signal's.
        self._is_asked = True

    async def on_tick(self, counter: int) -> bool:
        # Here and not in the handler, which may come between any two steps of the event loop.
        if self._is_asked:
            self._board.stopping.set()
            self.should_exit = True
        return await super().on_tick(counter)


def run_board(app: Starlette, opened: socket.socket) -> None:
    """Serve on the socket until a signal comes."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    for name in ("uvicorn.error", "launcher.board"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.WARNING)
    server = BoardServer(app)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        # A terminal that is closed, too.
        signal.signal(signal.SIGHUP, server.handle_exit)
    opened.listen(server.config.backlog)
    server.run([opened])
