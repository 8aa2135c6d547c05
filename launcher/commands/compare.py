"""`chorus compare`: the models of finished runs side by side, with intervals, as a page of Markdown."""

import argparse
import json
from pathlib import Path

from launcher.monitoring.status import open_run


def compare(options: argparse.Namespace) -> int:
    runs = [open_run(run) for run in options.runs]
    from launcher.comparison.model_results import read_comparison
    from launcher.comparison.page import write_comparisons

    comparisons = [read_comparison(run) for run in runs]
    written = write_comparisons(comparisons, [run.path for run in runs], Path(options.out).expanduser())
    if options.json:
        print(json.dumps({"written": [str(path) for path in written]}))
    else:
        print("\n".join(map(str, written)))
    return 0
