"""The mirror of a stage in Weights & Biases, owned by a daemon thread that training never waits for.

The wandb library starts helper processes, talks to a server and may hang or raise at any call; all of that
happens in the thread. The training thread only puts rows on a bounded queue. Whether to go online is decided
from the environment and netrc alone, without a word to the server. What the mirror does, and what it cannot
do, is written to `logs/wandb.log` of the stage.
"""

import atexit
import contextlib
import netrc
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from launcher.run_folder import StageFolder, read_json, write_json
from launcher.tracking.config import WandbConfig

QUEUE_ROWS = 4096
INIT_TIMEOUT_S = 60.0
_KILL_GRACE_S = 1.0
_EXIT_TIMEOUT_S = 3.0
_HELPER_NAME = "wandb-core"

Mode = Literal["online", "offline", "disabled"]
_ENVIRONMENT_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def choose_mode(configured: str, environment: Mapping[str, str]) -> tuple[Mode, str]:
    """Decides how to mirror, with the reason in words; asks no server.

    `WANDB_MODE` takes the place of the configured mode. `auto` means online with a login, else offline.
    """
    from_environment = environment.get("WANDB_MODE", "")
    if from_environment:
        if from_environment not in _ENVIRONMENT_MODES:
            return "offline", f"WANDB_MODE={from_environment} is not a mode that W&B has"
        return _ENVIRONMENT_MODES[from_environment], f"WANDB_MODE={from_environment}"
    if configured != "auto":
        return _ENVIRONMENT_MODES[configured], "the recipe says so"
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environment.get(name):
            return "online", f"{name} is set"
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    if _netrc_knows(host, environment):
        return "online", f"netrc has a login for {host}"
    return "offline", f"no login for {host} in the environment or netrc"


def _netrc_knows(host: str, environment: Mapping[str, str]) -> bool:
    home = Path(environment.get("HOME") or Path.home())
    given = environment.get("NETRC")
    for path in [Path(given)] if given else [home / ".netrc", home / "_netrc"]:
        try:
            login = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if login is not None and login[2]:
            return True
    return False


class WandbMirror:
    """One W&B run for one stage; a resumed stage continues it through the id in `wandb.json`."""

    def __init__(
        self,
        stage_folder: Path,
        config: WandbConfig,
        mode: Mode,
        reason: str,
        run_name: str,
        stage_name: str,
        recipe: dict,
    ) -> None:
        self.dropped_rows = 0
        self._stage = StageFolder(stage_folder)
        self._config = config
        self._mode: Mode = mode
        self._reason = reason
        self._run_name = run_name
        self._stage_name = stage_name
        self._recipe = recipe
        self._queue: queue.Queue[dict | None] = queue.Queue(QUEUE_ROWS)
        self._alive = True
        self._closed = False
        self._given_up = False
        self._thread = threading.Thread(target=self._mirror_rows, name="wandb-mirror", daemon=True)
        self._thread.start()

    def offer(self, row: dict) -> None:
        """Hands a row to the thread, or counts it as dropped when the thread is behind or gone."""
        if self._alive:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(row)
                return
        self.dropped_rows += 1

    def close(self, timeout_s: float) -> None:
        """Lets the thread finish; past `timeout_s` ends W&B's helper processes instead of waiting on."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        deadline_s = time.monotonic() + timeout_s
        patience_s = max(timeout_s - _KILL_GRACE_S, timeout_s / 2)
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=patience_s)
        self._thread.join(max(0.0, deadline_s - (timeout_s - patience_s) - time.monotonic()))
        if self._thread.is_alive():
            self._alive, self._given_up = False, True
            self._note(f"W&B did not finish within {patience_s:.0f} s and was ended; {self._sync_advice()}")
            _end_helpers(deadline_s)
            self._thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._queue.mutex:
            self.dropped_rows += sum(row is not None for row in self._queue.queue)
        if self.dropped_rows:
            self._note(f"{self.dropped_rows} rows are in metrics.jsonl only")

    def _mirror_rows(self) -> None:
        wandb = None
        # W&B's own telemetry waits for its server when the process exits.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb

            run = self._open_run(wandb)
            for row in iter(self._queue.get, None):
                run.log(_scalars(row))
            run.finish()
        except (Exception, SystemExit) as error:
            self._alive = False
            if not self._given_up:
                self._note(f"W&B is off for the rest of this stage: {type(error).__name__}: {error}")
        finally:
            self._alive = False
            # Ends wandb-core and takes back the exit hook that would otherwise wait for a dead server.
            with contextlib.suppress(Exception, SystemExit):
                if wandb is not None:
                    wandb.teardown()

    def _open_run(self, wandb: ModuleType) -> Any:
        """Opens or continues the run; when the server does not answer, opens it offline."""
        try:
            run = self._initialise(wandb, self._mode)
        except Exception as error:
            if self._mode != "online" or self._given_up:
                raise
            self._mode, self._reason = "offline", f"the server gave {type(error).__name__}: {error}"
            wandb.teardown()  # wandb-core holds on to the id of a run that failed to open.
            run = self._initialise(wandb, "offline")
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        offline = self._mode == "offline"
        self._note(f"{self._mode} ({self._reason})" + (f"; {self._sync_advice()}" if offline else ""))
        return run

    def _initialise(self, wandb: ModuleType, mode: Mode) -> Any:
        settings = wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_TIMEOUT_S,
            stop_fn=self._refuse_to_stop,
        )
        hooks = sys.exit, sys.excepthook
        try:
            wandb.setup(settings=settings)
            self._close_at_exit()
            return wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                tags=list(self._config.tags),
                group=self._run_name,
                name=self._stage_name,
                id=self._run_id(),
                resume="allow",
                mode=mode,
                dir=str(self._stage.path),
                config=self._recipe,
                settings=settings,
            )
        finally:
            # wandb replaces both for the whole process.
            sys.exit, sys.excepthook = hooks

    def _close_at_exit(self) -> None:
        """Makes an exit without `close` end the helpers.

        Exit hooks run last in, first out: this one has to come after that of wandb.setup, which waits for the
        server without limit.
        """
        atexit.unregister(self.close)
        atexit.register(self.close, _EXIT_TIMEOUT_S)

    def _run_id(self) -> str:
        identity = read_json(self._stage.wandb_file)
        if identity is None:
            identity = {
                "id": secrets.token_hex(4),
                "project": self._config.project,
                "entity": self._config.entity,
            }
            write_json(self._stage.wandb_file, identity)
        return identity["id"]

    def _refuse_to_stop(self) -> None:
        """The stop button of the W&B page would by default interrupt the main thread of training."""
        self._note("a stop was asked for on the W&B page; training goes on, stop the run where it was started")

    def _sync_advice(self) -> str:
        return f"to send it later: wandb sync --include-online {self._stage.path}/wandb/*run-*"

    def _note(self, message: str) -> None:
        path = self._stage.logs / "wandb.log"
        with contextlib.suppress(OSError):  # A full disk must not reach training through this log.
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(message.split())}\n")


def _scalars(row: dict) -> dict:
    """A row as W&B can draw it: a list becomes one metric per element."""
    flat = {}
    for key, value in row.items():
        items = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(items, list | tuple):
            flat.update({f"{key}/{index:02d}": item for index, item in enumerate(items)})
        else:
            flat[key] = items
    return flat


def _end_helpers(deadline_s: float) -> None:
    """Ends the wandb-core process of this process and its children: politely, then not."""
    helpers = []
    for child in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith(_HELPER_NAME):
                helpers += [*child.children(recursive=True), child]
    for signal in ("terminate", "kill"):
        for helper in helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(helper, signal)()
        _, helpers = psutil.wait_procs(helpers, timeout=max(0.0, (deadline_s - time.monotonic()) / 2))
