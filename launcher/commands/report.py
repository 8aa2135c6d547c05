"""`chorus report`: a run's report, written anew."""

import argparse
import json

from launcher.monitoring.status import open_run


def report(options: argparse.Namespace) -> int:
    run = open_run(options.run)

    # Imports matplotlib.
    from launcher.report import write_report

    write_report(run.path)
    if options.json:
        print(json.dumps({"report": str(run.report_file)}))
    else:
        print(run.report_file)
    return 0
