"""Servers that stand where W&B's would: one that answers, one that hangs, and none."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager


class _Answers(http.server.BaseHTTPRequestHandler):
    status, pause_s = 200, 0.0

    def do_POST(self) -> None:
        time.sleep(self.pause_s)
        body = b'{"data": {}}'
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_) -> None:
        pass


@contextmanager
def server_that_answers(status: int, pause_s: float):
    handler = type("Handler", (_Answers,), {"status": status, "pause_s": pause_s})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def server_that_hangs():
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextmanager
def nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port
