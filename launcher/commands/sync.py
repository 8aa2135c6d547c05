"""`chorus sync`: send what a run recorded for W&B while there was no server."""

import argparse
import json
import sys
from dataclasses import asdict

from launcher.errors import ConfigError
from launcher.monitoring.status import open_run
from launcher.tracking.sync import sync_run


def sync(options: argparse.Namespace) -> int:
    """Exit code 0 when nothing is left unsent, 1 when something failed."""
    if options.timeout_s <= 0:
        raise ConfigError(f"--timeout-s is {options.timeout_s:g}; give the seconds that a stage may take at most.")
    run = open_run(options.run)
    results = sync_run(run, options.timeout_s, _say_sending)
    if options.json:
        print(json.dumps({"run": str(run.path), "records": [asdict(result) for result in results]}, indent=2))
    elif not results:
        print("There is nothing to send.")
    else:
        for result in results:
            outcome = f"sent to W&B run {result.wandb_run}" if result.sent else f"not sent: {result.reason}"
            print(f"{result.stage}/wandb/{result.record}: {outcome}")
    all_sent = all(result.sent for result in results)
    return 0 if all_sent else 1


def _say_sending(stage: str, num_records: int) -> None:
    records = "1 record" if num_records == 1 else f"{num_records} records"
    print(f"{stage}: sending {records}", file=sys.stderr)
