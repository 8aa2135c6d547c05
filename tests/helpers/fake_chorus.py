"""`chorus` with stand-ins for what trains, evaluates and draws: python fake_chorus.py BEHAVIOURS ARGUMENT...

BEHAVIOURS is JSON: per stage what `fake_worker.py` is to do.
"""

import json
import os
import sys
from pathlib import Path
from unittest import mock

from launcher.cli import main as chorus
from launcher.processes import supervisor, worker_command

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def fake_command(behaviour: dict, run, stage: str) -> list[str]:
    return [
        sys.executable,
        str(FAKE_WORKER),
        json.dumps(behaviour),
        "--module",
        "launcher.worker",
        str(run.path),
        stage,
    ]


def main(behaviours: dict, arguments: list[str]) -> int:
    def training_command(processes, run, stage, port):
        return fake_command({"ranks": processes, "steps": 5, "attempts": [], **behaviours.get(stage, {})}, run, stage)

    def evaluation_command(run, stage):
        return fake_command({"evaluate": ["teacher", "student"]}, run, stage)

    def write_report(run_dir):
        (Path(run_dir) / "report.html").write_text("<html></html>")

    with (
        mock.patch.multiple(worker_command, training_command=training_command, evaluation_command=evaluation_command),
        mock.patch.object(supervisor, "POLL_S", 0.05),
        mock.patch("launcher.report.write_report", write_report, create=True),
        mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}),
    ):
        return chorus(arguments)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
