"""Looks the installed packages up among known vulnerabilities (pip-audit); part of `make lint`.

Leaves with 1 where a package has one that a newer version mends. Those without such a version are named. Where the
package index answers nothing of that kind, as without a network or from a mirror, it says so in a sentence and passes.
What is given on the command line goes to pip-audit, such as `--path FOLDER` for the packages in a folder.
"""

import http.client
import importlib.metadata
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence

# A package of ours, asked for first: an index without such data is not asked for a hundred others.
PROBED = "torch"
ANSWER_S = 10
AUDIT_S = 300


def main(arguments: Sequence[str]) -> int:
    version = importlib.metadata.version(PROBED).partition("+")[0]
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{PROBED}/{version}/json", timeout=ANSWER_S) as answer:
            content = json.load(answer)
    # HTTPException: an answer that breaks off.
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        return _skip(str(error) or type(error).__name__)
    has_data = isinstance(content, dict) and "vulnerabilities" in content
    if not has_data:
        return _skip("its answer holds none")

    # --skip-editable: Chorus itself is in no index.
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner=off", "--format=json"]
    command += arguments
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_S)
    except subprocess.TimeoutExpired:
        return _skip(f"pip-audit was not done after {AUDIT_S} s")
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (KeyError, TypeError, ValueError):
        # It prints nothing else where the index answers one of a hundred questions with an error.
        last_line = " ".join(result.stderr.split()[-30:])
        return _skip(f"pip-audit says {last_line!r}")

    num_audited = 0
    num_mendable = 0
    for package in packages:
        if "vulns" not in package:
            continue
        num_audited += 1
        for vulnerability in package["vulns"]:
            versions = vulnerability["fix_versions"]
            mended = "no version mends it yet"
            if versions:
                num_mendable += 1
                mended = f"mended in {', '.join(versions)}"
            print(f"{package['name']} {package['version']}: {vulnerability['id']}, {mended}")
    if not num_audited:
        return _skip("it knows none of the packages")
    print(f"{num_audited} of {len(packages)} packages audited, {num_mendable} vulnerabilities that can be mended.")
    return int(num_mendable > 0)


def _skip(reason: str) -> int:
    print(f"The dependencies were not audited: the package index gives no data on vulnerabilities here ({reason}).")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
