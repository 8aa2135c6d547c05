"""Runs Python under limits of memory and time: what a hostile file must not exhaust."""

import os
import resource
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# Above what the interpreter and its libraries have mapped when the code begins.
MEMORY_BYTES = 256 * 2**20
# Of the processor, and of the clock: a machine may have others to serve.
LIMIT_S = 60
TIMEOUT_S = 240
# In the process itself: what libraries map, and how much of that counts, differs from machine to machine.
LIMIT_FROM_HERE = """
import resource
mapped_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + {memory_bytes},) * 2)
"""


def run_limited(imports: str, code: str, *arguments: object, memory_bytes: int = MEMORY_BYTES) -> str:
    """What `code` prints, after `imports`, with so much more memory than these need; fails when it does."""
    script = imports + LIMIT_FROM_HERE.format(memory_bytes=memory_bytes) + code
    finished = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=REPOSITORY,
        # A heap per thread would be mapped, and never used.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S)),
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout
