"""Recordings that arrive over a WebSocket: samples in, text so far out, all that is known at the end.

The client sends binary messages of PCM (16 bits, little-endian, one channel) at the rate that it said, and the text
message `{"type": "end"}`. It gets `partial` messages, one `final` one, or an `error`. docs/serving.md has an example.
"""

import asyncio
import json
import logging
import queue
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from data.recordings import MAX_RATE_HZ, MIN_RATE_HZ
from launcher.serving.batching import AbandonedError, Work
from launcher.serving.gate import Slot
from launcher.serving.live_recognition import recognise_live
from launcher.serving.refusals import RefusedError

if TYPE_CHECKING:
    from launcher.serving.app import Service

PROTOCOL = "chorus"
# Blocks that wait for recognition. A client that sends faster than its speech is recognised waits then.
MAX_BLOCKS = 64
FULL_WAIT_S = 0.02
# One step of 16 bits.
STEP = np.float32(1 / 2**15)
# Codes of WebSocket: done, a message that breaks the rules, a fault of ours, the server ends.
NORMAL = 1000
VIOLATION = 1008
FAULT = 1011
RESTART = 1012

logger = logging.getLogger(__name__)


async def serve_stream(service: "Service", websocket: WebSocket) -> None:
    """Answer one client until its recording has ended, it goes away, breaks a limit, or the server is stopped."""
    slot: Slot = websocket.scope["state"]["slot"]
    # A browser takes no connection in which none of its protocols was chosen.
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    stream = _Stream(service, websocket)
    end = "done"
    code = NORMAL
    try:
        result = stream.start()
        slot.hold_until(result)
        was_stopped = await stream.receive()
        row = await result
        await stream.finish_texts()
        if row is None:
            raise RefusedError(
                400, "The stream ended before a sample came. Send binary messages of PCM first.", "no_audio"
            )
        service.metrics.audio_seconds.labels(stream.name).inc(row["seconds"])
        await websocket.send_json({"type": "final", "stopped": was_stopped, **row})
        if was_stopped:
            end = "stopped"
            code = RESTART
    except RefusedError as refusal:
        end = refusal.code
        code = VIOLATION
        service.metrics.refused.labels(refusal.code).inc()
        await websocket.send_json({"type": "error", **refusal.body()})
    except (WebSocketDisconnect, AbandonedError, TimeoutError):
        end = "gone"
    except Exception:
        logger.exception("A stream ended with a fault of the server.")
        end = "fault"
        code = FAULT
        fault = RefusedError(500, "The server met a fault of its own, which is in its log.", "fault")
        await websocket.send_json({"type": "error", **fault.body()})
    finally:
        service.metrics.streams.labels(end).inc()
        await stream.close()
        if end != "gone":
            await websocket.close(code)


class _Stream:
    """The messages of one client on their way to the thread that recognises, and its texts on their way back."""

    def __init__(self, service: "Service", websocket: WebSocket):
        self.service = service
        self.websocket = websocket
        self.work = Work()
        self.name = ""
        self._blocks: queue.Queue[np.ndarray | None] = queue.Queue()
        self._texts: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._sender: asyncio.Task[None] | None = None
        self._result: asyncio.Future[dict[str, Any] | None] | None = None
        self._num_samples = 0
        self._rate_hz = 0

    def start(self) -> "asyncio.Future[dict[str, Any] | None]":
        """Start the thread for what the address asks for. RefusedError where it asks for what there is not."""
        values = self.websocket.query_params
        self.name = values.get("model", "")
        batcher = self.service.batcher(self.name)
        rate = values.get("sample_rate", "")
        is_number = rate.isascii() and rate.isdecimal()
        if not is_number or not MIN_RATE_HZ <= int(rate[:9]) <= MAX_RATE_HZ:
            raise RefusedError(
                400,
                f"sample_rate is {rate[:20]!r} in the address. Give that of the samples, "
                f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz.",
                "invalid_value",
                "sample_rate",
            )
        self._rate_hz = int(rate)
        loop = asyncio.get_running_loop()
        self._sender = loop.create_task(self._send_texts())

        def show(read_s: float, text: str) -> None:
            message = {"type": "partial", "seconds": round(read_s, 3), "text": text}
            loop.call_soon_threadsafe(self._texts.put_nowait, message)

        def recognise() -> dict[str, Any] | None:
            model_rate_hz = batcher.model.features.config.sample_rate_hz
            return recognise_live(batcher, self.work, self._samples(model_rate_hz), show)

        self.service.works.add(self.work)
        self._result = loop.run_in_executor(self.service.threads, recognise)
        return self._result

    async def receive(self) -> bool:
        """Take messages until the client ends its recording (False) or the server is stopped (True). RefusedError for a
        message that is none, and beyond a limit."""
        settings = self.service.settings
        stopped = asyncio.ensure_future(self.service.admission.stopped.wait())
        # A stream is as long as its recording, and a client that dawdles holds a place.
        over_at_s = time.monotonic() + settings.max_seconds + settings.timeout_s
        try:
            while True:
                message = asyncio.ensure_future(self.websocket.receive())
                remaining_s = min(settings.timeout_s, over_at_s - time.monotonic())
                assert self._result is not None
                waited_for = {message, stopped, self._result}
                await asyncio.wait(waited_for, timeout=max(remaining_s, 0), return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    message.cancel()
                # A fault in the thread; awaiting its result raises it.
                if self._result.done():
                    return False
                if stopped.done():
                    self._blocks.put(None)
                    return True
                if not message.done():
                    raise RefusedError(
                        408,
                        f"Nothing came for {settings.timeout_s:g} s, or the stream is older than its limit. End a "
                        "recording with the message end.",
                        "timeout",
                    )
                if await self._take(message.result()):
                    return False
        finally:
            stopped.cancel()

    async def finish_texts(self) -> None:
        """Wait until what was shown before the end is sent."""
        self._texts.put_nowait(None)
        if self._sender is not None:
            await asyncio.wait_for(self._sender, self.service.settings.timeout_s)

    async def close(self) -> None:
        self.work.abandon()
        self._blocks.put(None)
        if self._sender is not None:
            self._sender.cancel()
        if self._result is not None:
            # Read, so that it is not called forgotten.
            self._result.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.service.works.discard(self.work)

    async def _take(self, message: Message) -> bool:
        """Hand a message's samples to the thread; whether it was the last one."""
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or NORMAL)
        data = message.get("bytes")
        if data is None:
            try:
                is_end = json.loads(message.get("text") or "") == {"type": "end"}
            except (ValueError, RecursionError):
                is_end = False
            if not is_end:
                raise RefusedError(
                    400, 'A text message can only be {"type": "end"}. Send samples as binary ones.', "invalid_message"
                )
            self._blocks.put(None)
            return True
        if len(data) % 2:
            raise RefusedError(
                400,
                f"A message of {len(data)} bytes holds no whole samples: they have 16 bits each. Send PCM, "
                "little-endian, of one channel.",
                "invalid_message",
            )
        self._num_samples += len(data) // 2
        max_seconds = self.service.settings.max_seconds
        if self._num_samples > max_seconds * self._rate_hz:
            raise RefusedError(
                413, f"The stream lasts more than the {max_seconds:g} s that this server takes.", "too_long"
            )
        while self._blocks.qsize() >= MAX_BLOCKS and self._result is not None and not self._result.done():
            await asyncio.sleep(FULL_WAIT_S)
        if data:
            self._blocks.put(np.frombuffer(data, "<i2").astype(np.float32) * STEP)
        return False

    def _samples(self, model_rate_hz: int) -> Iterator[np.ndarray]:
        """The samples at the model's rate, in the thread that recognises."""
        resampler = None
        if self._rate_hz != model_rate_hz:
            resampler = soxr.ResampleStream(self._rate_hz, model_rate_hz, 1, dtype="float32", quality="HQ")
        while True:
            block = self._blocks.get()
            self.work.check()
            if block is None:
                break
            if resampler is not None:
                block = resampler.resample_chunk(block)
            yield block
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    async def _send_texts(self) -> None:
        while True:
            message = await self._texts.get()
            if message is None:
                return
            await self.websocket.send_json(message)
