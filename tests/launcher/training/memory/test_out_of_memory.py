"""Memory that runs out in a training: the utterances are named, the micro-batch is split, and the loss is the same."""

import json

import processes
import pytest
import torch
from paths import HELPERS
from safetensors.torch import load_file
from small_runs import STAGE

from launcher.run_folder import RunFolder, read_json
from launcher.tracking import read_metrics

SCRIPT = str(HELPERS / "scarce.py")
ENCODER = f"stages.{STAGE}.model.encoder"
# Whatever differs between a micro-batch and its parts is off: noise is drawn for each part, and the balance of experts
# is that of a part.
SPLITTABLE = (
    f"{ENCODER}.dropout=0",
    f"{ENCODER}.experts.router.jitter=0",
    f"{ENCODER}.experts.router.bias_rate=0",
    f"stages.{STAGE}.model.decoder.dropout=0",
    f"stages.{STAGE}.objective.balance_weight=0",
    f"stages.{STAGE}.steps=4",
    f"stages.{STAGE}.validate_every=4",
    f"stages.{STAGE}.checkpoint.every_steps=2",
    f"stages.{STAGE}.log_every=1",
    "cluster.try_memory=false",
    "batches.seconds=16",
)
ALONE = ("cluster.processes=1", "cluster.expert_parallel=1")


def train(run: RunFolder, scarcity: dict | None, world: int = 1) -> list[int]:
    settings = scarcity or {"frames": 10**9, "place": "forward"}
    started = processes.start([SCRIPT, json.dumps(settings), str(run.path), STAGE], world, run.path / "log")
    try:
        return [process.wait(120) for process in started]
    finally:
        for process in started:
            process.kill()


def rows(run: RunFolder) -> list[dict]:
    return [row for row in read_metrics(run.stage(STAGE).metrics_file) if "loss" in row]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.stage(STAGE).model / "model.safetensors")


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Sums in another order; AdamW's first steps have the size of the learning rate, whatever the gradient's."""
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=2e-4, msg=name)


def events(run: RunFolder, name: str) -> list[dict]:
    return [event for event in run.events() if event["event"] == name]


@pytest.fixture(scope="module")
def whole(make_run) -> RunFolder:
    """A training in which everything fits."""
    run = make_run("whole", (*SPLITTABLE, *ALONE))
    assert train(run, None) == [0]
    return run


@pytest.mark.parametrize(
    ("deepspeed", "place", "error"),
    [
        ("zero2", "end", "cpu"),
        ("zero0", "backward", "memory"),
        pytest.param("zero2", "forward", "cuda", marks=pytest.mark.slow),
        pytest.param("zero2", "backward", "memory", marks=pytest.mark.slow),
        pytest.param("zero1", "backward", "cpu", marks=pytest.mark.slow),
        pytest.param("zero1", "end", "cuda", marks=pytest.mark.slow),
        pytest.param("zero0", "end", "cpu", marks=pytest.mark.slow),
    ],
)
def test_one_process_splits_what_does_not_fit_and_the_loss_is_that_of_the_whole(
    make_run, whole, deepspeed, place, error
):
    run = make_run("scarce", (*SPLITTABLE, *ALONE, f"cluster.deepspeed={deepspeed}"))
    assert train(run, {"frames": 700, "place": place, "error": error}) == [0], run.stage(STAGE).rank_log(0).read_text()
    found = events(run, "out_of_memory")
    assert found
    assert all(event["utterances"] and event["parts"] > 1 and event["seconds"] > 0 for event in found)
    log = run.stage(STAGE).rank_log(0).read_text()
    assert found[0]["utterances"][0] in log
    last = rows(run)[-1]
    assert last["out_of_memory"] == len(found)
    assert last["split_micro_batches"] > 0
    for row, expected in zip(rows(run), rows(whole), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert_close(weights(run), weights(whole))


def test_memory_that_runs_out_once_before_the_model_runs_is_no_reason_to_end(make_run, whole):
    run = make_run("once", (*SPLITTABLE, *ALONE))
    assert train(run, {"frames": 700, "place": "features", "from_step": 1}) == [0]
    assert len(events(run, "out_of_memory")) == 1
    assert_close(weights(run), weights(whole))


def test_an_utterance_that_does_not_fit_alone_ends_the_stage_with_what_to_set(make_run):
    run = make_run("tiny", (*SPLITTABLE, *ALONE))
    assert train(run, {"frames": 20, "place": "forward"}) == [2]
    message = read_json(run.stage(STAGE).error_files()[0])["message"]
    assert "one utterance at a time" in message
    assert "batches.max_utterance_s below" in message
    assert events(run, "out_of_memory")


@pytest.mark.parametrize(
    ("expert_parallel", "deepspeed"),
    [(2, "zero2"), pytest.param(1, "zero2", marks=pytest.mark.slow), pytest.param(2, "zero3", marks=pytest.mark.slow)],
)
def test_of_several_processes_the_one_out_of_memory_ends_and_all_split_alike_when_they_start_again(
    make_run, whole, expert_parallel, deepspeed
):
    topology = ("cluster.processes=2", f"cluster.expert_parallel={expert_parallel}", f"cluster.deepspeed={deepspeed}")
    run = make_run("two", (*SPLITTABLE, *topology))
    # Its peer fits everything, and must split as well: the all-to-all of the experts is a matter of both.
    scarcity = {"frames": 700, "place": "forward", "from_step": 3, "rank": 1}
    settings = [SCRIPT, json.dumps(scarcity), str(run.path), STAGE]
    attempts = 0
    while True:
        started = processes.start(settings, 2, run.path / "log")
        attempts += 1
        code = started[1].wait(120)
        if code == 0:
            assert started[0].wait(60) == 0
            break
        # What the supervisor does with the others.
        started[0].kill()
        started[0].wait(60)
        assert code == 1
        assert attempts < 5, run.stage(STAGE).rank_log(1).read_text()
    found = events(run, "out_of_memory")
    assert len(found) == attempts - 1 >= 1
    assert {event["step"] for event in found} == {3}
    assert rows(run)[-1]["out_of_memory"] == len(found)
    assert rows(run)[-1]["loss"] == pytest.approx(rows(whole)[-1]["loss"], rel=1e-4)
    assert_close(weights(run), weights(whole))
