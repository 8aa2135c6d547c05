"""`/v1/audio/transcriptions` and `/v1/models`, as a client of OpenAI's interface meets them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from small_servers import ADDRESS, PATH, RATE_HZ, ask, serving, wave_bytes
from starlette.testclient import TestClient

from launcher.inference.transcriber import Transcriber
from launcher.inference.transcript_formats import FORMATS


def transcribed(models, samples: np.ndarray, folder: Path, name: str = "noise") -> dict:
    """What `chorus transcribe` gives for it."""
    path = folder / "recording.wav"
    path.write_bytes(wave_bytes(samples))
    return Transcriber(models[name].model).transcribe(path)


@pytest.mark.parametrize("name", ["noise", "chunks"])
def test_each_format_is_that_of_transcribe(client, models, speech, tmp_path, name):
    row = transcribed(models, speech[0], tmp_path, name)
    assert row["text"], "a model that writes nothing shows nothing"
    content = wave_bytes(speech[0])
    assert ask(client, content, name).json() == {"text": row["text"]}
    for response_format in ("text", "srt", "vtt"):
        answer = ask(client, content, name, response_format=response_format)
        assert answer.status_code == 200
        assert answer.text == FORMATS[response_format].write(row)
    assert answer.headers["content-type"] == "text/vtt; charset=utf-8"


def test_verbose_json_has_words_segments_and_the_experts_of_each_frame(client, models, speech, tmp_path):
    row = transcribed(models, speech[0], tmp_path)
    fields = {"timestamp_granularities[]": ["word", "segment"], "experts": "true", "language": "ru"}
    answer = ask(client, wave_bytes(speech[0]), response_format="verbose_json", **fields).json()
    assert (answer["task"], answer["language"], answer["duration"]) == ("transcribe", "ru", row["seconds"])
    assert [word["word"] for word in answer["words"]] == [word["word"] for word in row["n_best"][0]["words"]]
    assert all(0 <= word["start"] <= word["end"] <= row["seconds"] for word in answer["words"])
    (segment,) = answer["segments"]
    pieces = models["noise"].model.tokenizer.pieces
    assert [pieces[token] for token in segment["tokens"]] == [token["token"] for token in row["n_best"][0]["tokens"]]

    routings = models["noise"].model.encode([speech[0]]).encoder.routings
    layers = answer["experts"]["layers"]
    assert [layer["frames"] for layer in layers] == [routing.experts_NK.tolist() for routing in routings]
    assert [layer["block"] for layer in layers] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_by_default_verbose_json_has_segments_alone_as_openai_says(client, speech):
    answer = ask(client, wave_bytes(speech[0]), response_format="verbose_json").json()
    assert "segments" in answer
    assert "words" not in answer
    assert "experts" not in answer


def test_what_is_ignored_is_said(client, speech):
    answer = ask(client, wave_bytes(speech[0]), temperature="0.5", prompt="names")
    assert answer.status_code == 200
    assert answer.headers["chorus-ignored"] == "prompt, temperature"


def test_requests_at_once_are_one_batch_and_each_gets_what_it_gets_alone(models, speech):
    contents = [wave_bytes(samples) for samples in speech]
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word"], "experts": "true"}
    with serving(models, batch_size=1) as client:
        alone = [ask(client, content, **fields).json() for content in contents]
    with serving(models, batch_size=len(contents), batch_wait_s=1.0) as client:
        with ThreadPoolExecutor(len(contents)) as threads:
            together = list(threads.map(lambda content: ask(client, content, **fields).json(), contents))
        metrics = client.get("/metrics").text
    batches = [family for family in text_string_to_metric_families(metrics) if family.name == "chorus_batch_size"]
    counts = {sample.name: sample.value for sample in batches[0].samples if sample.labels.get("model") == "noise"}
    assert counts["chorus_batch_size_sum"] == len(contents)
    assert counts["chorus_batch_size_count"] < len(contents)
    for one, other in zip(alone, together, strict=True):
        for word, other_word in zip(one["words"], other["words"], strict=True):
            # Sums of fp32 in another order.
            assert word.pop("confidence") == pytest.approx(other_word.pop("confidence"), abs=2e-4)
        assert one == other


def test_a_recording_that_fails_fails_alone(models, speech, monkeypatch):
    model = models["noise"].model
    encode = model.encode
    poison = len(speech[0])

    def encode_or_fail(waveforms):
        if any(len(waveform) == poison for waveform in waveforms):
            raise MemoryError("a batch of this size")
        return encode(waveforms)

    monkeypatch.setattr(model, "encode", encode_or_fail)
    with serving(models, batch_wait_s=0.5, batch_size=3) as client:
        calm = TestClient(client.app, base_url=ADDRESS, raise_server_exceptions=False)
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda samples: ask(calm, wave_bytes(samples)), speech[:3]))
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    assert answers[0].json()["error"]["type"] == "server_error"


def test_long_recordings_are_cut_as_transcribe_cuts_them(client, models, speech, tmp_path):
    silence = np.zeros(RATE_HZ // 2, np.float32)
    pieces = []
    while sum(map(len, pieces)) < 62 * RATE_HZ:
        pieces += [speech[len(pieces) % 3], silence]
    samples = np.concatenate(pieces)
    row = transcribed(models, samples, tmp_path)
    answer = ask(client, wave_bytes(samples), response_format="verbose_json", experts="true").json()
    assert answer["text"] == row["text"]
    assert [(part["start"], part["end"], part["text"]) for part in answer["segments"]] == [
        (part["start_s"], part["end_s"], part["text"]) for part in row["segments"]
    ]
    assert sum(len(part["tokens"]) for part in answer["segments"]) == len(row["n_best"][0]["tokens"])
    # Its segments overlap: there is no map of all frames.
    assert "experts" not in answer


@pytest.mark.parametrize(
    ("fields", "content", "status", "param", "says"),
    [
        ({"model": "none"}, "speech", 404, "model", "There is no model called 'none'"),
        ({"model": "../../etc"}, "speech", 404, "model", "There is no model"),
        ({"colour": "red"}, "speech", 400, "colour", "There is no field 'colour' here. Leave it out"),
        ({"response_format": "docx"}, "speech", 400, "response_format", "json"),
        ({"temperature": "warm"}, "speech", 400, "temperature", "number"),
        ({"language": "../ru"}, "speech", 400, "language", "pattern"),
        ({"timestamp_granularities[]": "word"}, "speech", 400, "response_format", "verbose_json"),
        ({"experts": "true"}, "speech", 400, "response_format", "verbose_json"),
        ({"stream": "true"}, "speech", 400, "stream", "WebSocket /v1/audio/stream"),
        ({}, b"", 400, "file", "cannot be recognised"),
        ({}, b"no audio at all", 400, "file", "cannot be recognised"),
        ({}, b"RIFF\xff\xff\xff\xffWAVEfmt ", 400, "file", "cannot be recognised"),
        ({}, b"#EXTM3U\nfile:///etc/passwd\n", 400, "file", "cannot be recognised"),
    ],
)
def test_what_cannot_be_used_is_refused_in_the_form_of_openai(client, speech, fields, content, status, param, says):
    if content == "speech":
        content = wave_bytes(speech[0])
    answer = ask(client, content, **fields)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert "/tmp" not in error["message"]


def test_a_form_without_its_parts_or_of_another_kind_is_refused(client, speech):
    for answer in (
        client.post(PATH, data={"model": "noise"}),
        client.post(PATH, files={"file": ("a.wav", wave_bytes(speech[0]))}),
        client.post(PATH, data={"model": "noise", "file": "https://example.org/talk.wav"}),
        client.post(PATH, json={"model": "noise", "file": "talk.wav"}),
        client.post(PATH, content=b"--x\r\nnothing", headers={"Content-Type": "multipart/form-data; boundary=x"}),
        client.post(PATH, content=b"\xff\xfe", headers={"Content-Type": "multipart/form-data"}),
        client.post(PATH),
    ):
        assert answer.status_code == 400, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for answer in (client.get("/nothing"), client.delete("/healthz"), client.get(PATH)):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["message"].endswith("describes what there is.")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_damaged_bytes_of_audio_are_refused_or_read_and_never_a_fault(client, speech, kind):
    whole = np.frombuffer(wave_bytes(speech[0][:RATE_HZ], kind), np.uint8)
    generator = np.random.default_rng(len(kind))
    statuses = set()
    for _ in range(20):
        damaged = whole.copy()
        # Headers are short, and most of what is read is decided there.
        reach = generator.choice([64, len(whole)])
        places = generator.integers(0, min(reach, len(whole)), generator.integers(1, 12))
        damaged[places] = generator.integers(0, 256, len(places))
        if generator.random() < 0.4:
            damaged = damaged[: generator.integers(0, len(damaged))]
        answer = ask(client, damaged.tobytes())
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 413), answer.text
    assert 400 in statuses


OPENED: list[str] = []
IS_WATCHING = [False]


def watch_opened(event: str, values: tuple) -> None:
    if IS_WATCHING[0] and event in ("open", "os.listdir", "os.scandir", "socket.getaddrinfo", "subprocess.Popen"):
        OPENED.append(f"{event} {values[0]}")


def test_nothing_that_a_request_names_is_opened(client, speech):
    # A hook cannot be taken away again; it looks only while this test runs.
    sys.addaudithook(watch_opened)
    IS_WATCHING[0] = True
    try:
        answer = ask(client, wave_bytes(speech[0]), name="../../../sought.g722")
        ask(client, b"file '/sought/list.wav'", model="/sought/model", name="/sought.raw")
        client.get("/v1/models/%2e%2e%2fsought")
        client.get("/../sought")
        client.post(PATH, data={"model": "noise", "file": "http://127.0.0.1:1/sought"})
    finally:
        IS_WATCHING[0] = False
    assert answer.status_code == 200
    assert [line for line in OPENED if "sought" in line] == []
    assert any("chorus-serve-" in line for line in OPENED), "the hook saw nothing"


def test_nothing_stays_of_a_request(client, speech, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Above a mebibyte the parser of forms takes a file too.
    loud = np.tile(speech[0], 40)[: 40 * RATE_HZ]
    assert ask(client, wave_bytes(loud)).status_code == 200
    assert ask(client, b"no audio").status_code == 400
    assert list(tmp_path.iterdir()) == []


def test_models_are_listed_by_name(client):
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [row["id"] for row in answer["data"]] == ["noise", "chunks"]
    assert client.get("/v1/models/noise").json() == answer["data"][0]
    assert client.get("/v1/models/none").status_code == 404


def test_a_stereo_file_of_another_rate_is_read_too(client, speech, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([speech[0], speech[0]], 1), 48_000)
    answer = ask(client, path.read_bytes(), response_format="verbose_json").json()
    assert answer["duration"] == pytest.approx(len(speech[0]) / 48_000, abs=0.001)
