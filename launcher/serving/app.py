"""The server as an ASGI application: its paths, what they answer, and errors in OpenAI's form."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from launcher.inference.finished_model import FinishedModel
from launcher.inference.speech_detection import load_detector
from launcher.serving.batching import AbandonedError, Batcher, Work
from launcher.serving.gate import STREAM, TRANSCRIPTIONS, Admission, Gate, Slot
from launcher.serving.page import render_page
from launcher.serving.recordings import recognise_upload
from launcher.serving.refusals import ErrorBody, RefusedError, error_body
from launcher.serving.server_metrics import ServerMetrics
from launcher.serving.settings import ServerSettings
from launcher.serving.streams import serve_stream
from launcher.serving.transcriptions import (
    TranscriptionForm,
    TranscriptionText,
    VerboseTranscription,
    verbose_transcription,
    write_transcription,
)

# What a page of ours may do: nothing that is not in it, but to ask this server. A worklet is made from a blob.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:; style-src 'unsafe-inline'; "
    "connect-src 'self'; media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "what was sent cannot be used"},
    401: {"model": ErrorBody, "description": "the token is missing or wrong"},
    403: {"model": ErrorBody, "description": "a page of another site asked, or another name of this machine was used"},
    404: {"model": ErrorBody, "description": "there is no such model"},
    408: {"model": ErrorBody, "description": "the request arrived too slowly"},
    413: {"model": ErrorBody, "description": "the recording is too large or too long"},
    429: {"model": ErrorBody, "description": "as much runs as the server takes at once; Retry-After says when to ask"},
    503: {"model": ErrorBody, "description": "the server is being stopped"},
    504: {"model": ErrorBody, "description": "recognition took too long"},
}

logger = logging.getLogger(__name__)


class ModelRow(BaseModel):
    id: str
    object: str = "model"
    created: int = Field(description="when its weights were written, in seconds since 1970")
    owned_by: str = "chorus"


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelRow]


class Health(BaseModel):
    status: str


class ServedModel(BaseModel, arbitrary_types_allowed=True):
    """A finished model under the name by which it is asked for."""

    name: str
    model: FinishedModel
    created: int


class Service:
    """What a server works with: models with their batchers, the threads, the count of what runs."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServerSettings):
        self.settings = settings
        self.models = models
        self.metrics = ServerMetrics()
        self.admission = Admission(settings, self.metrics)
        # One thread that computes, with all cores: two would share them, and each batch would take twice as long.
        self.compute = ThreadPoolExecutor(1, "chorus-compute")
        self.threads = ThreadPoolExecutor(settings.max_running, "chorus-request")
        self.batchers: dict[str, Batcher] = {}
        for name, served in models.items():
            on_batch = partial(self._count_batch, name)
            self.batchers[name] = Batcher(
                served.model, self.compute, settings.batch_size, settings.batch_wait_s, on_batch
            )
        self.works: set[Work] = set()

    def batcher(self, name: str) -> Batcher:
        if name not in self.batchers:
            raise RefusedError(
                404,
                f"There is no model called {name[:100]!r} here. /v1/models has their names: {', '.join(self.models)}.",
                "model_not_found",
                "model",
            )
        return self.batchers[name]

    def close(self) -> None:
        """Abandon what still runs; threads end where they look next."""
        for work in list(self.works):
            work.abandon()
        for batcher in self.batchers.values():
            batcher.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.compute.shutdown(wait=False, cancel_futures=True)

    def _count_batch(self, name: str, size: int, waited_s: float) -> None:
        self.metrics.batch_size.labels(name).observe(size)
        self.metrics.batch_wait_seconds.labels(name).observe(waited_s)


def build_app(models: Mapping[str, ServedModel], settings: ServerSettings) -> FastAPI:
    """The application that serves models under these names. ConfigError where a part is not installed."""
    # Without it a stream could not be cut: said before the first one comes.
    load_detector()
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # The documentation pages of FastAPI load scripts from elsewhere.
    app = FastAPI(
        title="Chorus",
        description="Speech recognition by finished models, with an interface like OpenAI's.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Gate, admission=service.admission)
    _add_error_forms(app)
    _add_paths(app, service)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Take out of the description what FastAPI adds to it, and this server never answers: 422."""
    description = app.openapi()
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        description["components"]["schemas"].pop(name, None)


def _add_error_forms(app: FastAPI) -> None:
    """Every error has OpenAI's form, also those of the framework."""

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, refusal: RefusedError) -> JSONResponse:
        request.app.state.service.metrics.refused.labels(refusal.code).inc()
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.detail, RefusedError):
            return await refuse(request, error.detail)
        message = f"{str(error.detail).rstrip('.')}."
        if error.status_code == 404:
            message = "There is nothing at this path. /openapi.json describes what there is."
        elif error.status_code == 405:
            message = f"This path does not take {request.method}. /openapi.json describes what there is."
        return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = next((str(part) for part in first["loc"][1:]), None)
        name = repr(str(field)[:100])
        message = f"The field {name} cannot be used: {first['msg']}. /openapi.json describes the fields."
        if first["type"] == "extra_forbidden":
            message = f"There is no field {name} here. Leave it out; /openapi.json describes the fields that there are."
            if field == "stream":
                message += f" Text while a recording is being made comes over the WebSocket {STREAM}."
        return await refuse(request, RefusedError(400, message, "invalid_value", field))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again, and the server logs it with its traceback.
        body = error_body(500, "The server met a fault of its own, which is in its log.", "fault")
        return JSONResponse(body, 500)


def _add_paths(app: FastAPI, service: Service) -> None:
    settings = service.settings
    security: list[Any] = []
    if settings.token is not None:
        # The gate compares; this describes it.
        security = [Security(HTTPBearer(auto_error=False))]
    page = render_page(service.models)

    @app.get("/", response_class=HTMLResponse, summary="A page to speak to, or to drop a file on")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/healthz", summary="Whether the server takes requests", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        if service.admission.is_stopping:
            response.status_code = 503
            return Health(status="stopping")
        return Health(status="ok")

    @app.get("/metrics", summary="Counters for Prometheus", dependencies=security, response_class=Response)
    async def show_metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", summary="The models that are served", dependencies=security)
    async def list_models() -> ModelList:
        return ModelList(data=[ModelRow(id=served.name, created=served.created) for served in service.models.values()])

    @app.get("/v1/models/{name}", summary="One of them", dependencies=security, responses={404: REFUSALS[404]})
    async def show_model(name: str) -> ModelRow:
        service.batcher(name)
        return ModelRow(id=name, created=service.models[name].created)

    @app.post(
        TRANSCRIPTIONS,
        summary="The text of a recording",
        dependencies=security,
        responses={
            **REFUSALS,
            200: {
                "description": "in the format that was asked for",
                "content": {
                    "text/plain": {"schema": {"type": "string"}},
                    "application/x-subrip": {"schema": {"type": "string"}},
                    "text/vtt": {"schema": {"type": "string"}},
                },
            },
        },
        response_model=VerboseTranscription | TranscriptionText,
    )
    async def transcribe(
        request: Request, form: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        return await _transcribe(service, request, form)

    @app.websocket(STREAM)
    async def stream(websocket: WebSocket) -> None:
        await serve_stream(service, websocket)


async def _transcribe(service: Service, request: Request, form: TranscriptionForm) -> Response:
    slot: Slot = request.scope["state"]["slot"]
    is_verbose = form.response_format == "verbose_json"
    if not is_verbose and (form.timestamp_granularities is not None or form.experts):
        raise RefusedError(
            400,
            "timestamp_granularities and experts are of response_format=verbose_json. Ask for that, or leave them out.",
            "invalid_value",
            "response_format",
        )
    batcher = service.batcher(form.model)
    work = Work(wants_experts=form.experts)
    row = await _recognise(service, request, slot, batcher, work, form)
    service.metrics.audio_seconds.labels(form.model).inc(row["seconds"])
    # Said, for a field that is ignored would seem to have worked.
    ignored = {"temperature", "prompt"} & form.model_fields_set
    headers = {"Chorus-Ignored": ", ".join(sorted(ignored))} if ignored else {}
    model = batcher.model
    if is_verbose:
        answer = verbose_transcription(form, row, model.tokenizer.pieces, model.frame_s, work)
        return Response(answer.model_dump_json(exclude_none=True), 200, headers, "application/json")
    if form.response_format == "json":
        return JSONResponse({"text": row["text"]}, 200, headers)
    text, media_type = write_transcription(form, row)
    return Response(text, 200, headers, media_type)


async def _recognise(
    service: Service, request: Request, slot: Slot, batcher: Batcher, work: Work, form: TranscriptionForm
) -> dict[str, Any]:
    """The row of the form's recording, unless its time is over or its client goes away before."""
    service.works.add(work)
    call = partial(recognise_upload, batcher, work, slot, form.file.file, service.settings)
    result = asyncio.get_running_loop().run_in_executor(service.threads, call)
    # Until the thread has seen that nobody waits, it counts among those that run.
    slot.hold_until(result)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({result, gone}, timeout=slot.remaining_s(), return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        work.abandon()
        # What the thread says of it is of no interest any more.
        result.add_done_callback(lambda future: future.cancelled() or future.exception())
        if gone.done():
            raise RefusedError(499, "The client has closed the connection.", "client_gone")
        raise RefusedError(
            504,
            f"The recording was not recognised within the {service.settings.timeout_s:g} s that this server gives to a "
            "request. Send it in parts, or ask again when less runs.",
            "timeout",
        )
    except AbandonedError:
        raise RefusedError(503, "The server is being stopped, and did not finish the request.", "stopping") from None
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        service.works.discard(work)


async def _wait_until_gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
