"""The board as an ASGI application: a page, what it asks for, and gauges for Prometheus. It only reads.

Changes are sent as they are seen, as server-sent events: the rows of runs that changed, and which runs are gone.
"""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from launcher.board.failures import describe_failure
from launcher.board.page import render_page
from launcher.board.prometheus import render_metrics
from launcher.board.watched_run import WatchedRun
from launcher.board.watcher import Watcher
from launcher.serving.access import check_access
from launcher.serving.refusals import RefusedError, error_body

# What tells nothing of the runs is open without a token.
OPEN_PATHS = ("/", "/healthz")
STREAM_S = 1.0
# A line now and then, by which both ends notice that the other is gone.
ALIVE_S = 15.0
MAX_STREAMS = 100


class BoardGate:
    """ASGI middleware that refuses whoever may not ask, and whatever is no question."""

    def __init__(self, app: ASGIApp, is_local: bool, token: str | None) -> None:
        self._app = app
        self._is_local = is_local
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                check_access(scope, self._is_local, self._token, OPEN_PATHS)
            except RefusedError as refusal:
                await JSONResponse(refusal.body(), refusal.status, refusal.headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Board:
    """What the paths answer with."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.stopping = asyncio.Event()
        self._num_streams = 0
        self._page = render_page()
        self._page_headers = {
            "Content-Security-Policy": _page_policy(self._page),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=self._page_headers)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def runs(self, request: Request) -> Response:
        return _json({"runs": [run.summary for run in self.watcher.runs.values()]})

    async def run(self, request: Request) -> Response:
        run = self._named_run(request)
        return await run_in_threadpool(self._detail, run)

    def _detail(self, run: WatchedRun) -> Response:
        with run.lock:
            if run.summary.get("state") == "unreadable":
                return _json(run.summary)
            return _json({"now": time.time(), **run.detail()})

    async def failure(self, request: Request) -> Response:
        run = self._named_run(request)
        return await run_in_threadpool(self._failure, run, request.query_params.get("stage", ""))

    def _failure(self, run: WatchedRun, stage: str) -> Response:
        with run.lock:
            folder = run.stage_folder(stage)
            lost_rank = run.lost_ranks.get(stage)
        if folder is None:
            raise HTTPException(404, f"The run has no stage called {stage[:100]!r}.")
        return _json(describe_failure(folder, run.run.path, lost_rank))

    async def processes(self, request: Request) -> Response:
        run = self._named_run(request)
        stage = request.query_params.get("stage", "")
        with run.lock:
            folder = run.stage_folder(stage)
            if folder is None:
                raise HTTPException(404, f"The run has no stage called {stage[:100]!r}.")
            return _json({"processes": run.processes(stage)})

    async def metrics(self, request: Request) -> Response:
        return Response(render_metrics(self.watcher), media_type=CONTENT_TYPE_LATEST)

    async def stream(self, request: Request) -> Response:
        if self._num_streams >= MAX_STREAMS:
            raise HTTPException(429, f"{MAX_STREAMS} pages look at this board already. Close some of them.")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._changes(), media_type="text/event-stream", headers=headers)

    async def _changes(self) -> AsyncIterator[str]:
        """Messages: all runs first, then those that changed."""
        self._num_streams += 1
        sent: dict[str, int] = {}
        silent_s = 0.0
        try:
            while not self.stopping.is_set():
                message = _changed(self.watcher.runs, sent)
                if message is not None:
                    silent_s = 0.0
                    yield f"data: {message}\n\n"
                elif silent_s >= ALIVE_S:
                    silent_s = 0.0
                    yield ": alive\n\n"
                silent_s += STREAM_S
                try:
                    await asyncio.wait_for(self.stopping.wait(), STREAM_S)
                except TimeoutError:
                    continue
        finally:
            self._num_streams -= 1

    def _named_run(self, request: Request) -> WatchedRun:
        name = request.query_params.get("run", "")
        run = self.watcher.runs.get(name)
        if run is None:
            raise HTTPException(404, f"There is no run called {name[:200]!r} here. /api/runs lists them.")
        return run


def _changed(runs: dict[str, WatchedRun], sent: dict[str, int]) -> str | None:
    """A message about what changed since `sent`, which is brought up to date; None where nothing did."""
    rows = []
    for name, run in runs.items():
        version = run.version
        # A run that was only just seen has no summary yet.
        if run.summary and sent.get(name) != version:
            rows.append({**run.summary, "version": version})
            sent[name] = version
    gone = [name for name in sent if name not in runs]
    for name in gone:
        del sent[name]
    if not rows and not gone:
        return None
    # Ages are told by the clock of this machine, which wrote the times.
    return json.dumps({"now": time.time(), "runs": rows, "gone": gone}, allow_nan=False)


def _json(value: Any) -> Response:
    # In ASCII: a lone surrogate, which a torn file may hold, has no other form in JSON.
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def _page_policy(page: str) -> str:
    """What the page may do: run the one script that is in it, and ask this server."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 405:
        message = f"This server only shows: it does not take {request.method}."
    elif message == "Not Found":
        message = "There is nothing at this path."
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)


def build_board(watcher: Watcher, is_local: bool, token: str | None) -> Starlette:
    """The application over what a watcher sees; the watcher runs while the application does."""
    board = Board(watcher)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watcher.start()
        yield
        watcher.stop()

    routes = [
        Route("/", board.page),
        Route("/healthz", board.health),
        Route("/metrics", board.metrics),
        Route("/api/runs", board.runs),
        Route("/api/run", board.run),
        Route("/api/failure", board.failure),
        Route("/api/processes", board.processes),
        Route("/api/stream", board.stream),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refuse})
    app.add_middleware(BoardGate, is_local=is_local, token=token)
    app.state.board = board
    return app
