"""Starts ranks by fork from a process that has imported what they need: `rank_server.py`, asked by `processes.py`.

Imports are most of what a short training costs: some six seconds of processor time for each rank. A fork has them at
once and is else a process of its own: it joins its process group, trains, receives signals and exits as any other.

Requests and reports are lines of JSON on stdin and stdout. The first report is {"threads": NUMBER}; a fork copies one
thread only, so with more than one nothing is to be asked for. A request is {"arguments": what follows `python`,
"environment": all of it, "log": where stdout and stderr go, "folder": the working directory}, answered by {"pid":
NUMBER}. Whenever a rank ends, there is a report {"pid": NUMBER, "code": as subprocess.Popen.returncode}. When stdin
ends, so do all ranks.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

import deepspeed.ops

# What a rank of any test imports, early or late. DeepSpeed's Muon imports torch's compiler when an engine is built.
PRELOADED = (
    "deepspeed.moe.layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "launcher.inference.finished_model",
    "launcher.processes.heartbeat",
    "launcher.stages.lineage",
    "launcher.training.checkpoint",
    "launcher.training.distillation.setup",
    "launcher.training.setup",
    "torch.utils.tensorboard",
)


class RankServer:
    def __init__(self) -> None:
        # Ranks have a stdin and a stdout of their own: what libraries print must not be taken for a report.
        self._requests = os.fdopen(os.dup(0), "rb", buffering=0)
        self._reports = os.dup(1)
        os.dup2(2, 1)
        self._ranks: set[int] = set()
        self._woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakes = wakes
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes)

    def serve(self) -> dict | None:
        """Fork a rank for each request. Returns the request in the rank, and None in the server at the end."""
        self._report(threads=len(os.listdir("/proc/self/task")))
        unread = b""
        while True:
            ready, _, _ = select.select([self._requests, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._requests not in ready:
                continue
            received = self._requests.read(65536)
            if not received:
                self._end_ranks()
                return None
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    self._close()
                    return json.loads(line)
                self._ranks.add(pid)
                self._report(pid=pid)

    def _report(self, **values: int) -> None:
        os.write(self._reports, json.dumps(values).encode() + b"\n")

    def _reap(self) -> None:
        for pid in list(self._ranks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._ranks.remove(pid)
                self._report(pid=pid, code=os.waitstatus_to_exitcode(status))

    def _end_ranks(self) -> None:
        for pid in self._ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _close(self) -> None:
        """Leave nothing of the server in a rank."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._requests.close()
        for descriptor in (self._reports, self._woken, self._wakes):
            os.close(descriptor)


def preload() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    # DeepSpeed tries a compiler to tell which of its operators could be built.
    _ = deepspeed.ops.__compatible_ops__
    # Garbage is never looked for among what was imported: looking writes to every object, and so copies it.
    gc.collect()
    gc.freeze()


def exit_code(request: dict) -> int:
    """Run a rank to its end, with all that happens when Python exits but for taking down its modules."""
    code = 0
    try:
        run_rank(request)
    except SystemExit as exit_request:
        code = exit_request.code if isinstance(exit_request.code, int) else int(exit_request.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_rank(request: dict) -> None:
    """Do what `python ARGUMENTS` does in this process."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.close(log)
    os.close(nothing)

    random.seed()  # as in a process that has just started; torch's own generator starts with a fixed seed
    arguments = request["arguments"]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = request["folder"]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    server = RankServer()
    preload()
    request = server.serve()
    if request is None:
        os._exit(0)
    # Taking down what was imported would copy all of it first.
    os._exit(exit_code(request))
