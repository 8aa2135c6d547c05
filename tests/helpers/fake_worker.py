"""Stands in for a training process tree: keeps the records of a worker without training anything.

python fake_worker.py BEHAVIOUR RUN_DIR STAGE, where BEHAVIOUR is JSON: {"ranks": 2, "steps": 6, "attempts":
[...]}, and each attempt is what to do at which step: {"at": 3, "do": "die" | "hang" | "exit", "rank": 1,
"code": 3}, or {"do": "raise", "error": "DataError", "message": "..."}, which is recorded as a worker's error. The
others then record the loss of a peer; with "record_peers" they do so after a "die" too. With "deaf" the others do not
notice, and write their stacks beside their log when they are aborted. An attempt without an entry works to the end.
A checkpoint is left at every step, so an attempt goes on where the last one ended. SIGTERM is ignored when
"stubborn". With {"evaluate": MODELS} it leaves an evaluation instead.
"""

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from data.errors import DataError
from launcher.errors import ConfigError, exit_code
from launcher.processes.worker_error import record_error
from launcher.run_folder import RunFolder, write_json

STEP_S = 0.03
ERRORS = {kind.__name__: kind for kind in (ConfigError, DataError, RuntimeError)}


def attempt_number(counter: Path) -> int:
    number = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(number + 1))
    return number


def misbehave(plan: dict, folder) -> None:
    log = folder.rank_log(plan["rank"])
    if plan["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan["do"] == "exit":
        log.write_text(f"rank {plan['rank']}: {plan['message']}\n")
        os._exit(plan["code"])
    if plan["do"] == "raise":
        fail(folder, plan["rank"], ERRORS[plan["error"]](plan["message"]))
    while True:  # hang
        time.sleep(1)


def fail(folder, rank: int, error: Exception) -> None:
    try:
        raise error
    except Exception as raised:
        folder.rank_log(rank).write_text(f"rank {rank}: {raised}\n")
        record_error(folder, rank, raised)
        os._exit(exit_code(raised))


def wait_for_peers(behaviour: dict, folder, rank: int, step: int, plan: dict) -> None:
    """Wait until every rank has come to a step, as a collective does; leave when one of them is lost."""
    while len(beats := folder.read_heartbeats()) < behaviour["ranks"] or min(b["step"] for b in beats) < step:
        for beat in beats:
            if beat["step"] < step and not plan.get("deaf") and not psutil.pid_exists(beat["pid"]):
                if plan.get("do") == "raise" or plan.get("record_peers"):
                    fail(folder, rank, RuntimeError("Connection closed by peer [127.0.0.1]:1234"))
                folder.rank_log(rank).write_text(f"rank {rank}: connection closed by peer\n")
                os._exit(1)
        time.sleep(0.02)


def work(behaviour: dict, plan: dict, run: RunFolder, stage: str, rank: int) -> int:
    folder = run.stage(stage)
    if behaviour.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    step = max(folder.checkpoint_steps(), default=0)
    folder.rank_log(rank).write_text(f"rank {rank} starts\n")
    if plan.get("deaf"):
        faulthandler.enable(folder.rank_log(rank).with_suffix(".stacks").open("w"))
    while True:
        host = os.environ.get("FAKE_HOST") or socket.gethostname()
        beat = {"rank": rank, "pid": os.getpid(), "host": host, "step": step}
        write_json(folder.heartbeat_file(rank), {**beat, "section": "train", "time": time.time()})
        if plan and plan["at"] == step and plan["rank"] == rank:
            misbehave(plan, folder)
        if step >= behaviour["steps"] or (folder.stop_file.exists() and not behaviour.get("stubborn")):
            break
        wait_for_peers(behaviour, folder, rank, step, plan)
        time.sleep(STEP_S)
        step += 1
        if rank == 0:
            row = {
                "step": step,
                "loss": 10.0 / step,
                "audio_s_per_s": 20.0,
                "time": time.time(),
                "step_s": STEP_S,
            }
            with folder.metrics_file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            folder.checkpoint(step).mkdir(parents=True, exist_ok=True)
    if rank == 0:
        if step >= behaviour["steps"]:
            write_json(folder.model / "config.json", {"stage": stage})
            (folder.model / "model.safetensors").write_text(f"{stage} after {step} steps")
        write_json(folder.done_file, {"status": "done" if step >= behaviour["steps"] else "stopped", "step": step})
    return 0


def evaluate(models: list[str], folder) -> int:
    rates = {"cer": 0.05, "wer": 0.2, "utterances": 3, "rtf": 0.01}
    parameters = {f"{kind}parameters": 300 for kind in ("", "encoder_", "effective_encoder_", "activated_encoder_")}
    found = {name: {**parameters, "test": rates, "examples": []} for name in models}
    write_json(folder.evaluation_file, {"models": found})
    return 0


def main() -> int:
    behaviour, run, stage = json.loads(sys.argv[1]), RunFolder(sys.argv[-2]), sys.argv[-1]
    if "RANK" in os.environ:
        return work(behaviour, json.loads(os.environ["PLAN"]), run, stage, int(os.environ["RANK"]))
    if "evaluate" in behaviour:
        return evaluate(behaviour["evaluate"], run.stage(stage))
    number = attempt_number(run.path / f".{stage}.attempts")
    plan = behaviour["attempts"][number] if number < len(behaviour["attempts"]) else {}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "RANK": str(rank), "PLAN": json.dumps(plan)})
        for rank in range(behaviour["ranks"])
    ]
    if behaviour.get("orphans"):
        time.sleep(1)
        return 0  # as the deepspeed command does when its own child is killed
    # As the deepspeed command, though faster: the first exit code decides, the others are ended later.
    while any(rank.poll() is None for rank in ranks):
        codes = [rank.returncode for rank in ranks if rank.poll() not in (None, 0)]
        failed = [] if plan.get("deaf") else codes
        if failed:
            time.sleep(0.5)
            for rank in ranks:
                rank.terminate()
            return failed[0] if failed[0] > 0 else 247
        time.sleep(0.02)
    return max(rank.returncode for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
