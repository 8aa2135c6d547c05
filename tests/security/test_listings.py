"""Listings of stores that do not end, or are larger than any: one clear error, in bounded time and memory."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.remote import listing
from launcher.errors import ConfigError
from launcher.inference.recording_sources import find_recordings

LINKS = b"".join(b'<a href="a%d.wav">a</a>' % number for number in range(5000))


class HostileServer(BaseHTTPRequestHandler):
    """Pages by their path; those that do not end go on until nobody reads."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        with suppress(OSError):
            if self.path.startswith("/endless"):
                while not self.server.is_over.wait(0):  # pyright: ignore[reportAttributeAccessIssue]
                    self.wfile.write(LINKS * 20)
            elif self.path.startswith("/slow"):
                while not self.server.is_over.wait(0.1):  # pyright: ignore[reportAttributeAccessIssue]
                    self.wfile.write(b" ")
            elif self.path.startswith("/deep"):
                # Every folder has two, and so on.
                self.wfile.write(b'<a href="b/">b</a><a href="c/">c</a>')
            elif self.path.startswith("/many"):
                self.wfile.write(LINKS)
            else:
                self.wfile.write(b'<a href="x.wav">x</a><a href="http://elsewhere/y.wav">y</a><a href="../z.wav">z</a>')

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileServer)
    server.is_over = threading.Event()  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    yield f"http://127.0.0.1:{server.server_port}"
    server.is_over.set()  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()


def test_the_files_that_a_page_links_to_are_taken_and_those_of_other_servers_are_not(url: str) -> None:
    assert [source.name for source in find_recordings([f"{url}/talks/*.wav"])] == [f"{url}/talks/x.wav"]


def test_a_page_that_does_not_end_is_given_up_in_bounded_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_MEMORY_BYTES", 5 * 2**26)
    with pytest.raises(ConfigError, match="cannot be looked through: "):
        find_recordings([f"{url}/endless/*.wav"])


@pytest.mark.parametrize("pattern", ["slow/*.wav", "deep/**.wav"])
def test_a_listing_that_does_not_end_is_given_up_in_bounded_time(
    url: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_SECONDS", 2.0)
    with pytest.raises(ConfigError, match="had not ended after 2 s"):
        find_recordings([f"{url}/{pattern}"])


def test_more_names_than_are_taken_are_refused_with_their_number(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_matching", lambda pattern: [pattern] * 5)
    monkeypatch.setattr(listing, "MAX_NAMES", 4)
    assert "5 names match" in str(listing._answer("s3://bucket/*.wav")["error"])


@pytest.mark.parametrize(
    "pattern", ["http://127.0.0.1:1/*.wav", "s3://no-such-bucket.invalid/*.wav", "file:///nowhere/*.wav"]
)
def test_a_store_that_cannot_be_listed_is_one_clear_error_or_a_name_without_a_recording(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSPEC_S3", '{"endpoint_url": "http://127.0.0.1:1", "anon": true}')
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(listing, "MAX_SECONDS", 10.0)
    shown = ""
    try:
        (source,) = find_recordings([pattern])
        shown = source.name
    except ConfigError as error:
        shown = str(error)
    assert shown == pattern or shown.endswith("Name its files instead.")
