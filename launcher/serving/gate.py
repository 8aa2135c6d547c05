"""What every request passes before anything of it is read: who may ask, how much, and how many at once.

Who may ask is said in `access.py`. Bodies are counted as they arrive, whatever their headers say.
"""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher.serving.access import check_access
from launcher.serving.refusals import RefusedError
from launcher.serving.server_metrics import ServerMetrics
from launcher.serving.settings import ServerSettings

TRANSCRIPTIONS = "/v1/audio/transcriptions"
STREAM = "/v1/audio/stream"
# What is open without a token: nothing of it tells what was said, or which models there are.
OPEN_PATHS = ("/", "/healthz", "/openapi.json")
# Names of the paths in metrics; what else is asked for counts as one, for there is no end of it.
COUNTED_PATHS = (*OPEN_PATHS, "/metrics", "/v1/models", TRANSCRIPTIONS, STREAM)
# Of a form with a recording: what lies around the bytes of the file.
FORM_BYTES = 64 * 1024


class Admission:
    """Counts what runs. All of it happens in the server's event loop."""

    def __init__(self, settings: ServerSettings, metrics: ServerMetrics):
        self.settings = settings
        self.metrics = metrics
        self.running = 0
        self.is_stopping = False
        # Streams wait for it.
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """Take nothing new from now on; let streams end."""
        self.is_stopping = True
        self.stopped.set()

    def admit(self) -> "Slot":
        """A slot for a request or a stream; a RefusedError where there is none."""
        self.check_open()
        if self.running >= self.settings.max_running:
            raise RefusedError(
                429,
                f"The server works on {self.running} requests, as many as it takes at once. Ask again in a second.",
                "too_many_requests",
                retry_after_s=1,
            )
        return Slot(self)

    def check_open(self) -> None:
        if self.is_stopping:
            raise RefusedError(
                503,
                "The server is being stopped and takes no new requests. Ask again when it has been started anew.",
                "stopping",
                retry_after_s=10,
            )


class Slot:
    """The place of a request among those that run; it is free again when all that holds it is done."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self._holders = 0
        self.deadline_s = time.monotonic() + admission.settings.timeout_s
        admission.running += 1
        admission.metrics.running.set(admission.running)
        self._acquire()

    def remaining_s(self) -> float:
        return max(self.deadline_s - time.monotonic(), 0.0)

    def hold_until(self, work: "Future[Any] | asyncio.Future[Any]") -> None:
        """Keep the place while a thread works, also when its request has been answered."""
        self._acquire()
        work.add_done_callback(lambda _: self.release())

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._admission.running -= 1
            self._admission.metrics.running.set(self._admission.running)

    def _acquire(self) -> None:
        self._holders += 1


class Gate:
    """ASGI middleware that refuses, or hands on with a slot in `scope["state"]["slot"]`."""

    def __init__(self, app: ASGIApp, admission: Admission):
        self.app = app
        self.admission = admission
        self.settings = admission.settings
        self.metrics = admission.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started_s = time.monotonic()
        path = scope["path"]
        counted = path if path in COUNTED_PATHS else "other"
        # What is said of a connection that ends without an answer.
        status = 101 if scope["type"] == "websocket" else 499

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            await send(message)

        slot = None
        try:
            self._check(scope)
            if path == STREAM or (path == TRANSCRIPTIONS and scope["method"] == "POST"):
                slot = self.admission.admit()
                scope.setdefault("state", {})["slot"] = slot
            if slot is not None and scope["type"] == "http":
                receive = self._bounded(receive, slot)
            await self.app(scope, receive, send_counted)
        except RefusedError as refusal:
            self.metrics.refused.labels(refusal.code).inc()
            await self._refuse(refusal, scope, receive, send_counted)
        finally:
            if slot is not None:
                slot.release()
            self.metrics.requests.labels(counted, str(status)).inc()
            if scope["type"] == "http":
                self.metrics.request_seconds.labels(counted).observe(time.monotonic() - started_s)

    def _check(self, scope: Scope) -> None:
        check_access(scope, self.settings.is_local, self.settings.token, OPEN_PATHS)
        length = Headers(scope=scope).get("content-length", "")
        if scope["type"] == "http" and length.isdecimal() and int(length[:20]) > self._most_bytes:
            raise self._too_large()

    @property
    def _most_bytes(self) -> int:
        return self.settings.max_bytes + FORM_BYTES

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413,
            f"The request is larger than the {self.settings.max_bytes / 2**20:g} MiB that this server takes. Send the "
            "recording in parts, or compressed, as FLAC, Opus or MP3.",
            "too_large",
            "file",
        )

    def _bounded(self, receive: Receive, slot: Slot) -> Receive:
        """`receive` with bounds on the bytes of a body and on the time in which it arrives."""
        num_bytes = 0
        is_whole = False

        async def receive_bounded() -> Message:
            nonlocal num_bytes, is_whole
            # Behind the body comes nothing but the end of the connection, at any time.
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), slot.remaining_s())
            except TimeoutError:
                raise _as_http(
                    RefusedError(
                        408,
                        f"The request had not arrived after {self.settings.timeout_s:g} s. Send it faster, or less.",
                        "slow_upload",
                    )
                ) from None
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                is_whole = not message.get("more_body", False)
                if num_bytes > self._most_bytes:
                    raise _as_http(self._too_large())
            return message

        return receive_bounded

    async def _refuse(self, refusal: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse(refusal.body(), refusal.status, refusal.headers)
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
            return
        await response(scope, receive, send)


def _as_http(refusal: RefusedError) -> HTTPException:
    """A refusal that comes through a parser of forms, which turns other errors into its own."""
    return HTTPException(refusal.status, refusal, refusal.headers)  # pyright: ignore[reportArgumentType]
