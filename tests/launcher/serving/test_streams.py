"""Recordings over a WebSocket: text while they arrive, and at the end what the whole recording gives."""

import itertools
import json

import numpy as np
import pytest
import soxr
from small_servers import RATE_HZ, STREAM, serving, wait_for, wave_bytes
from starlette.testclient import WebSocketDenialResponse

from launcher.inference.transcriber import Transcriber


def samples_of(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2")


def converse(client, samples: np.ndarray, model: str, rate_hz: int = RATE_HZ, block: int = 3001) -> tuple[list, dict]:
    """The partial messages, and the final one."""
    with client.websocket_connect(f"{STREAM}?model={model}&sample_rate={rate_hz}") as stream:
        for start in range(0, len(samples), block):
            stream.send_bytes(samples_of(samples[start : start + block]).tobytes())
        stream.send_json({"type": "end"})
        partial = []
        while True:
            message = stream.receive_json()
            if message["type"] != "partial":
                return partial, message
            partial.append(message)


@pytest.mark.parametrize(("name", "cut"), [("noise", "always"), ("chunks", "never")])
@pytest.mark.parametrize("seconds", [4, 24])
def test_the_end_is_what_the_whole_recording_gives(client, models, speech, tmp_path, name, cut, seconds):
    silence = np.zeros(RATE_HZ // 2, np.float32)
    pieces = [part for samples in speech for part in (samples, silence)]
    samples = np.tile(np.concatenate(pieces), 10)[: seconds * RATE_HZ]
    samples = samples_of(samples).astype(np.float32) / 2**15
    path = tmp_path / "whole.wav"
    path.write_bytes(wave_bytes(samples))
    expected = Transcriber(models[name].model, cut).transcribe(path)
    partial, final = converse(client, samples, name, block=30_000)
    assert final["type"] == "final"
    assert final["stopped"] is False
    assert final["text"] == expected["text"] != ""
    words = [{**word, "confidence": 0} for word in final["n_best"][0]["words"]]
    assert words == [{**word, "confidence": 0} for word in expected["n_best"][0]["words"]]
    assert partial, "nothing was shown on the way"
    times = [message["seconds"] for message in partial]
    assert times == sorted(times)
    assert times[0] < seconds


def test_chunks_only_ever_add_to_the_text(client, speech):
    partial, final = converse(client, np.concatenate(speech), "chunks")
    texts = [message["text"] for message in partial]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert final["text"].startswith(texts[-1])


def test_samples_of_another_rate_are_resampled(client, speech):
    samples = soxr.resample(speech[0], RATE_HZ, 48_000)
    _, final = converse(client, samples, "noise", 48_000)
    assert final["seconds"] == pytest.approx(len(speech[0]) / RATE_HZ, abs=0.002)
    assert final["text"]


def test_a_stream_of_silence_has_no_text_and_no_error(client):
    _, final = converse(client, np.zeros(RATE_HZ, np.float32), "chunks")
    assert final["type"] == "final"


@pytest.mark.parametrize(
    ("query", "message", "code"),
    [
        ("model=none&sample_rate=16000", b"", "model_not_found"),
        ("sample_rate=16000", b"", "model_not_found"),
        ("model=noise", b"", "invalid_value"),
        ("model=noise&sample_rate=-5", b"", "invalid_value"),
        ("model=noise&sample_rate=9999999999999", b"", "invalid_value"),
        ("model=noise&sample_rate=\u0661\u0666000", b"", "invalid_value"),
        ("model=noise&sample_rate=16000", b"odd", "invalid_message"),
        ("model=noise&sample_rate=16000", "no JSON", "invalid_message"),
        ("model=noise&sample_rate=16000", "[" * 10_000, "invalid_message"),
        ("model=noise&sample_rate=16000", '{"type": "path", "path": "/etc/passwd"}', "invalid_message"),
        ("model=noise&sample_rate=16000", '{"type": "end"}', "no_audio"),
    ],
)
def test_what_cannot_be_used_is_said_and_the_stream_is_closed(client, query, message, code):
    with client.websocket_connect(f"{STREAM}?{query}") as stream:
        if isinstance(message, bytes):
            stream.send_bytes(message)
        else:
            stream.send_text(message)
        answer = stream.receive_json()
        assert answer["type"] == "error"
        assert answer["error"]["code"] == code
        assert stream.receive()["code"] == 1008
    wait_for(lambda: client.app.state.service.admission.running == 0)


def test_a_client_that_goes_away_or_says_nothing_frees_its_place(models, speech):
    with serving(models, timeout_s=0.2) as client:
        admission = client.app.state.service.admission
        with client.websocket_connect(f"{STREAM}?model=noise&sample_rate=16000") as stream:
            stream.send_bytes(samples_of(speech[0]).tobytes())
        with client.websocket_connect(f"{STREAM}?model=noise&sample_rate=16000") as stream:
            assert stream.receive_json()["error"]["code"] == "timeout"
            stream.receive()
        wait_for(lambda: admission.running == 0)


def test_streams_count_among_what_runs(models, speech):
    with serving(models, max_running=1) as client:
        address = f"{STREAM}?model=noise&sample_rate=16000"
        with client.websocket_connect(address) as stream:
            with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(address):
                pass
            assert refused.value.status_code == 429
            stream.send_bytes(samples_of(speech[0]).tobytes())
            stream.send_text(json.dumps({"type": "end"}))
            while stream.receive_json()["type"] != "final":
                pass


def test_a_server_that_is_stopped_ends_streams_with_what_was_heard_and_takes_nothing_new(models, speech):
    with serving(models) as client:
        service = client.app.state.service
        with client.websocket_connect(f"{STREAM}?model=chunks&sample_rate=16000") as stream:
            stream.send_bytes(samples_of(speech[0]).tobytes())
            # Something has been heard.
            stream.receive_json()
            client.portal.call(service.admission.stop)
            while (message := stream.receive_json())["type"] == "partial":
                pass
            assert message["type"] == "final"
            assert message["stopped"] is True
            assert message["seconds"] == pytest.approx(len(speech[0]) / RATE_HZ, abs=0.001)
            assert stream.receive()["code"] == 1012
        answer = client.post("/v1/audio/transcriptions", files={"file": ("a", b"")}, data={"model": "noise"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "10"
        assert client.get("/healthz").json() == {"status": "stopping"}
