"""A web server of files on loopback whose answers go wrong on command."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RANGE = re.compile(r"bytes=(\d+)-(\d*)")
# What a fault is given: the name of the file, and how many requests for it there were before.
Fault = Callable[[str, int], str]


class FileServer:
    """Serves a folder. `fault` names what is wrong with an answer, or nothing:

    a status such as "500"; "429" asks for a pause of a second; "stall" sends half and then nothing; "cut" closes after
    half; "short" sends half and says that it is all; "elsewhere" sends other bytes than those asked for; "flip" changes
    one; "whole" ignores the range; "packed" claims to be compressed; "endless" sends the whole without its length;
    "torrent" goes on behind the end as long as anybody listens, "trickle" sends a byte from time to time; "around"
    redirects to itself, "astray" to a file; "garbled" is no HTTP.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.fault: Fault = lambda name, number: ""
        self.delay_s = 0.0
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bytes_sent = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.url = ""

    def count(self, name: str) -> int:
        """How many requests there were for a file."""
        return sum(requested == name for requested, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: the second would wait 40 ms for the answer to the first.
    disable_nagle_algorithm = True
    files: FileServer
    # Whether the other end has closed the connection.
    is_lost = False

    def do_GET(self) -> None:
        files = self.files
        name = self.path.rpartition("/")[2]
        with files.lock:
            number = files.count(name)
            files.requests.append((name, self.headers.get("Range", "")))
            files.headers.append(dict(self.headers))
        time.sleep(files.delay_s)
        fault = files.fault(name, number)
        path = files.folder / self.path.lstrip("/")
        if not fault and not path.is_file():
            fault = "404"
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            if fault == "429":
                self.send_header("Retry-After", "1")
            self.end_headers()
            return
        if fault in ("around", "astray"):
            self.send_response(302)
            self.send_header("Location", self.path if fault == "around" else "file:///etc/hostname")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "garbled":
            self.close_connection = True
            self._write(b"HTTP/1.1 206 OK\r\nContent Range\x00 bytes\r\n\r\n")
            return
        self._send(path.read_bytes(), fault)

    def _send(self, content: bytes, fault: str) -> None:
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        num_bytes = len(content)
        first = 0
        if match is None or fault in ("whole", "endless", "torrent"):
            self.send_response(200)
        else:
            first = int(match[1])
            last = min(int(match[2] or num_bytes), num_bytes - 1)
            if first >= num_bytes:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "elsewhere":
                first += 1
            content = content[first : last + 1]
            if fault == "short":
                content = content[: len(content) // 2]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{num_bytes}")
        if fault == "flip":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if fault == "packed":
            self.send_header("Content-Encoding", "gzip")
        if fault in ("endless", "torrent"):
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self._send_body(content, fault)

    def _send_body(self, content: bytes, fault: str) -> None:
        if fault in ("stall", "cut"):
            self._write(content[: len(content) // 2])
            self.close_connection = True
            if fault == "stall":
                self.files.released.wait(30)
            return
        if fault == "trickle":
            for position in range(len(content)):
                self._write(content[position : position + 1])
                if self.is_lost or self.files.released.wait(0.05):
                    return
            return
        self._write(content)
        while fault == "torrent" and not self.is_lost and not self.files.released.is_set():
            self._write(bytes(2**16))

    def _write(self, content: bytes) -> None:
        # Before they are sent: whoever has them may look at the count.
        with self.files.lock:
            self.files.bytes_sent += len(content)
        try:
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:
            # Whoever asked has had enough.
            self.close_connection = True
            self.is_lost = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_files(folder: Path) -> Iterator[FileServer]:
    """A server of a folder while the block lasts."""
    files = FileServer(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": files}))
    server.daemon_threads = True
    # By default a connection that its client closed early is a traceback in the output.
    server.handle_error = lambda request, client_address: None
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        files.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
