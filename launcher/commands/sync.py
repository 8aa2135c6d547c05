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
    results = sync_run(
        run,
        options.timeout_s,
        lambda stage, number: print(f"{stage}: sending {number} record{'s' * (number > 1)}", file=sys.stderr),
    )
    failed = [result for result in results if not result.sent]
    if options.json:
        print(json.dumps({"run": str(run.path), "records": [asdict(result) for result in results]}, indent=2))
    else:
        for result in results:
            outcome = f"sent to W&B run {result.wandb_run}" if result.sent else f"not sent: {result.reason}"
            print(f"{result.stage}/wandb/{result.record}: {outcome}")
        if not results:
            print("There is nothing to send.")
    return 1 if failed else 0
