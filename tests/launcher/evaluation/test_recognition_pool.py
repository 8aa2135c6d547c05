"""`--jobs` of an evaluation: outcomes in the order of batches, and what becomes of those of a process that is lost."""

import pytest

from launcher.errors import CheckpointError
from launcher.evaluation import recognition
from launcher.evaluation.recognition import Batch, RecogniserPool, Row, Settings
from launcher.inference import worker_pool

# Speaks as a real process does, and starts at once.
FAKE_WORKER = """
import json, os, signal, sys, time
settings = json.loads(sys.stdin.readline())
for line in sys.stdin:
    task = json.loads(line)
    (batch,) = task["batches"]
    positions = batch["positions"]
    if settings["model"] == "torn":
        answer = {"kind": "refused", "error": "CheckpointError", "reason": "the model is torn"}
    elif 13 in positions:
        os.kill(os.getpid(), signal.SIGKILL)
    elif task["is_timed"]:
        answer = {"kind": "result", "result": {"latencies": [[1.5, 0.25] for _ in positions]}}
    else:
        time.sleep(0.2 if positions[0] == 0 else 0.0)
        rows = []
        for position in positions[:-1]:
            row = {"number": batch["number"], "position": position, "text": "да", "words": [["да", 0.1 + 0.2]]}
            rows.append({**row, "seconds": 1 / 3, "snr_db": 60.0})
        outcome = {"batch": batch, "rows": rows, "broken": [[positions[-1], "no audio"]], "busy_s": 0.1}
        answer = {"kind": "result", "result": {"outcomes": [outcome]}}
    print(json.dumps(answer), flush=True)
"""
BATCHES = [Batch(0, (0, 1, 2)), Batch(0, (12, 13)), Batch(1, (4, 5), 3), Batch(1, (13,)), Batch(0, (6, 7))]


@pytest.fixture
def open_pool(tmp_path, monkeypatch):
    (tmp_path / "fake_recogniser.py").write_text(FAKE_WORKER)
    monkeypatch.setattr(recognition, "WORKER_MODULE", "fake_recogniser")
    monkeypatch.setattr(worker_pool, "PACKAGES", tmp_path)
    monkeypatch.setattr(recognition.FinishedModel, "load", lambda *_: None)

    def open_pool(model: str, jobs: int) -> RecogniserPool:
        return RecogniserPool(Settings(model, {"kind": "greedy"}, "cpu", "fp32", ()), [], jobs)

    return open_pool


@pytest.mark.parametrize("jobs", [2, 3, 8])
def test_a_process_that_is_lost_loses_its_batch_and_nothing_else(open_pool, jobs):
    with open_pool("model", jobs) as pool:
        outcomes = list(pool.recognise(BATCHES))
        assert pool.latencies([Batch(0, (1, 2))]) == [(1.5, 0.25), (1.5, 0.25)]
        assert pool.latencies([Batch(0, (13,))]) == []
    assert [outcome.batch for outcome in outcomes] == BATCHES
    for batch, outcome in zip(BATCHES, outcomes, strict=True):
        if 13 in batch.positions:
            assert outcome.rows == []
            assert tuple(position for position, _ in outcome.broken) == batch.positions
            assert "was ended by signal 9. If memory ran out, give fewer --jobs" in outcome.broken[0][1]
        else:
            rows = [Row(batch.number, place, "да", (("да", 0.1 + 0.2),), 1 / 3, 60.0) for place in batch.positions[:-1]]
            assert outcome.rows == rows
            assert outcome.broken == [(batch.positions[-1], "no audio")]
            assert outcome.busy_s == 0.1


def test_a_model_that_a_process_cannot_open_is_said_once(open_pool):
    with open_pool("torn", 2) as pool, pytest.raises(CheckpointError, match="the model is torn"):
        list(pool.recognise(BATCHES))
