#!/usr/bin/env python
"""Stands in for `deepspeed --no_ssh --node_rank I`: starts `fake_worker.py` for each rank of this host.

What the ranks do is in the variable FAKE_BEHAVIOUR, as `fake_worker.py` describes it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def main(arguments: list[str]) -> int:
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
    run, stage = Path(arguments[-2]), arguments[-1]
    node = int(options["node_rank"])
    slots = [int(line.rpartition("=")[2]) for line in Path(options["hostfile"]).read_text().splitlines()]
    behaviour = json.loads(os.environ["FAKE_BEHAVIOUR"]) | {"ranks": sum(slots)}
    counter = run / f".{stage}.attempts-{node}"
    number = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(number + 1))
    plan = behaviour["attempts"][number] if number < len(behaviour["attempts"]) else {}
    first = sum(slots[:node])
    command = [sys.executable, str(FAKE_WORKER), json.dumps(behaviour), "--module", "launcher.worker", str(run), stage]
    ranks = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "PLAN": json.dumps(plan)})
        for rank in range(first, first + slots[node])
    ]
    while any(rank.poll() is None for rank in ranks):
        failed = [rank.returncode for rank in ranks if rank.poll() not in (None, 0)]
        if failed and not plan.get("deaf"):
            time.sleep(0.5)
            for rank in ranks:
                rank.terminate()
            return failed[0] if failed[0] > 0 else 247
        time.sleep(0.02)
    return max(abs(rank.returncode) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
