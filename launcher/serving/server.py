"""Runs the application until a signal asks it to stop, and then until what runs is done, or its time is over."""

import logging
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from data.redaction import RedactingFormatter
from launcher.serving.app import Service

# Messages of a WebSocket: 30 s of samples at 16 kHz.
MAX_MESSAGE_BYTES = 2**20
# Connections, asked or idle; more are refused. Slots bound what is worked on.
MAX_CONNECTIONS = 1000
# For answers that are on their way when all is done.
CLOSING_S = 5
# Stopped before all was done: see `launcher/cli.py`.
CUT_OFF = 75


class StoppableServer(uvicorn.Server):
    """After a signal new requests are refused in a sentence, while those that run have `stop_s` to finish.

    uvicorn itself would close WebSockets at once. A second signal ends everything at once.
    """

    def __init__(self, app: FastAPI, service: Service):
        config = uvicorn.Config(
            app,
            # Nothing is taken from headers that a proxy may write, and nothing is logged about requests.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            # A compressed message of a WebSocket may be a thousand times as large as it arrives.
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=MAX_MESSAGE_BYTES,
            http="h11",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=CLOSING_S,
        )
        super().__init__(config)
        self.service = service
        self.num_cut_off = 0
        self._num_signals = 0
        self._stop_by_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not handed on: uvicorn would raise the signal again when all is done, and the exit code would be the signal's.
        self._num_signals += 1
        if self._num_signals == 1:
            self._stop_by_s = time.monotonic() + self.service.settings.stop_s
        else:
            self.should_exit = True
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        # Here and not in the handler, which may come between any two steps of the event loop.
        if self._num_signals:
            admission = self.service.admission
            if not admission.is_stopping:
                admission.stop()
                print(f"chorus: stopping; {admission.running} requests run", file=sys.stderr, flush=True)
            elif admission.running == 0 or time.monotonic() > self._stop_by_s:
                self.should_exit = True
            if self.should_exit:
                self.num_cut_off = admission.running
                # Requests get an answer that says so.
                self.service.close()
        return await super().on_tick(counter)


def run_server(app: FastAPI, opened: socket.socket) -> int:
    """Serve on the socket until a signal comes; the exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger("uvicorn.error").addHandler(handler)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # It warns of every form that is none, which is answered with 400.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    service: Service = app.state.service
    server = StoppableServer(app, service)
    # A terminal that is closed, too.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, server.handle_exit)
    opened.listen(server.config.backlog)
    server.run([opened])
    if server.num_cut_off == 0:
        return 0
    print(
        f"chorus: {server.num_cut_off} requests were not done after {service.settings.stop_s:g} s, and were cut off. "
        "Give them more time with --stop-seconds.",
        file=sys.stderr,
        flush=True,
    )
    # Python would wait at its end for their threads, which may be in the middle of a long computation.
    os._exit(CUT_OFF)
