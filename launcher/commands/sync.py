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
        records = [asdict(result) for result in results]
        print(json.dumps({"run": str(run.path), "records": records}, indent=2))
    elif not results:
        print("There is nothing to send.")
    else:
        for result in results:
            outcome = f"not sent: {result.reason}"
            if result.sent:
                outcome = f"sent to W&B run {result.wandb_run}"
            print(f"{result.stage}/wandb/{result.record}: {outcome}")
    for result in results:
        if not result.sent:
            return 1
    return 0


def _say_sending(stage: str, num_records: int) -> None:
    records = f"{num_records} records"
    if num_records == 1:
        records = "1 record"
    # Standard output is for the outcomes alone, which may be JSON.
    print(f"{stage}: sending {records}", file=sys.stderr)
