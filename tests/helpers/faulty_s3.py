"""moto's S3 server with faults on command: python faulty_s3.py; it prints its port and ends with its standard input.

    with serving() as server:
        server.fault("PUT", "manifest", status=500, times=2)

A request whose method and path match is answered with a status instead, or held back (`stall_s`) before it is served.
`times` counts down; without it the fault stays until `clear`. What was asked is in `requests`, oldest first.
"""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass

START_S = 120
CONTROL = "/_control"
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
CODES = {403: "AccessDenied", 500: "InternalError", 501: "NotImplemented", 503: "SlowDown", 507: "InsufficientStorage"}


class FaultyApplication:
    """A WSGI application in front of moto's."""

    def __init__(self, application):
        self._application = application
        self._faults = []
        self._requests = []
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        method = environ["REQUEST_METHOD"]
        if path == CONTROL:
            return self._control(method, environ, start_response)
        with self._lock:
            self._requests.append([method, path])
            fault = self._next_fault(method, path)
        if fault is None:
            return self._application(environ, start_response)
        if fault.get("stall_s"):
            time.sleep(fault["stall_s"])
            return self._application(environ, start_response)
        # Read, so that the client is not cut off while it sends.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status = fault["status"]
        body = ERROR.format(code=CODES[status], message="a fault on command").encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{status} {CODES[status]}", headers)
        return [body]

    def _next_fault(self, method, path):
        for fault in self._faults:
            if re.fullmatch(fault["method"], method) and re.search(fault["path"], path) and fault["times"] != 0:
                fault["times"] -= 1
                return dict(fault)
        return None

    def _control(self, method, environ, start_response):
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self._lock:
            if method == "PUT":
                self._faults = json.loads(content)
            elif method == "DELETE":
                self._requests.clear()
            body = json.dumps({"requests": self._requests, "faults": self._faults}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


@dataclass
class FaultyServer:
    """A server of `serving`, as a test commands it."""

    url: str

    def __post_init__(self):
        self._faults = []

    def fault(self, method, path, status=None, stall_s=0.0, times=-1):
        self._faults.append({"method": method, "path": path, "status": status, "stall_s": stall_s, "times": times})
        self._ask("PUT", json.dumps(self._faults).encode())

    def clear(self):
        self._faults = []
        self._ask("PUT", b"[]")

    def requests(self):
        return [tuple(request) for request in self._ask("GET")["requests"]]

    def forget_requests(self):
        self._ask("DELETE")

    def _ask(self, method, content=None):
        request = urllib.request.Request(self.url + CONTROL, data=content, method=method)
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            return json.load(answer)


@contextlib.contextmanager
def serving():
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().strip()
        assert port.isdigit(), "the server did not start"
        yield FaultyServer(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def main():
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = FaultyApplication(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
