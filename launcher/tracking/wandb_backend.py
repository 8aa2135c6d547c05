"""Weights & Biases: one run per stage, grouped by the run of Chorus.

Whether to go online is decided from the environment and netrc alone. Everything that is to be sent later lies in the
stage's folder `wandb`, staged artifacts and sounds included.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil

from launcher.run_folder import StageFolder, read_json, write_json
from launcher.tracking.backend import Alert, Artifact, Sound, Table
from launcher.tracking.config import WandbConfig
from launcher.tracking.flatten import flatten_numbers
from launcher.tracking.login import Mode

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 30.0
RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_HELPER_NAME = "wandb-core"
# The mark that `wandb sync` leaves beside the record of a run that it has sent.
SENT_SUFFIX = ".wandb.synced"
_MAP_CAPTION = "blue: less than an even share, white: even, red: more"


class WandbBackend:
    """One W&B run for one stage; a resumed stage continues it through the id in `wandb.json`."""

    name = "wandb"

    def __init__(
        self,
        stage_folder: Path,
        config: WandbConfig,
        mode: Mode,
        reason: str,
        run_name: str,
        recipe: dict[str, Any],
    ) -> None:
        self._stage = StageFolder(stage_folder)
        self._config = config
        self._mode: Mode = mode
        self._reason = reason
        self._run_name = run_name
        self._recipe = recipe
        self._wandb: Any = None
        self._run: Any = None
        self._abandoned = False

    def open(self, claim_exit: Callable[[], None]) -> str:
        """Opens or continues the run; when the server does not answer, opens it offline."""
        # W&B's own telemetry waits for its server when the process exits.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        try:
            self._run = self._initialise(wandb, self._mode, claim_exit)
        except Exception as error:
            if self._mode != "online" or self._abandoned:
                raise
            self._mode = "offline"
            self._reason = f"the server gave {type(error).__name__}: {error}"
            # wandb-core holds on to the id of a run that failed to open.
            wandb.teardown()
            self._run = self._initialise(wandb, "offline", claim_exit)
        # Rows come at steps of training; W&B would count calls of `log`.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        state = f"{self._mode} ({self._reason})"
        if self._mode == "offline":
            state += f"; {self.advice()}"
        return state

    def _initialise(self, wandb: ModuleType, mode: Mode, claim_exit: Callable[[], None]) -> Any:
        settings = wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_TIMEOUT_S,
            stop_fn=self._refuse_to_stop,
        )
        exit_function = sys.exit
        exception_hook = sys.excepthook
        try:
            wandb.setup(settings=settings)
            claim_exit()
            # Kept in the stage's folder, so that a stage that resumes goes on in the same W&B run.
            run_id = _read_id(self._stage.wandb_file)
            if run_id is None:
                run_id = secrets.token_hex(4)
                identity = {"id": run_id, "project": self._config.project, "entity": self._config.entity}
                write_json(self._stage.wandb_file, identity)
            return wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                tags=list(self._config.tags),
                # Runs of a sweep are shown together.
                group=os.environ.get("WANDB_RUN_GROUP") or self._run_name,
                name=self._stage.name,
                id=run_id,
                resume="allow",
                mode=mode,
                dir=str(self._stage.path),
                config=self._recipe,
                settings=settings,
            )
        finally:
            # wandb replaces both for the whole process.
            sys.exit = exit_function
            sys.excepthook = exception_hook

    def _refuse_to_stop(self) -> None:
        """The stop button of the W&B page would by default interrupt the main thread of training."""
        logger.warning("a stop was asked for on the W&B page; training goes on, stop the run where it was started")

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(flatten_numbers(row))

    def summarize(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        row: dict[str, Any] = {"step": step}
        for name, image in images.items():
            row[name] = self._wandb.Image(image, caption=_MAP_CAPTION)
        self._run.log(row)

    def alert(self, alert: Alert) -> None:
        self._run.alert(title=alert.title, text=alert.text, level=alert.level)

    def table(self, table: Table) -> None:
        with self._staging(), tempfile.TemporaryDirectory() as folder:
            rows = []
            for row in table.rows:
                cells = []
                for cell in row:
                    # W&B takes a recording as a file, which it copies.
                    if isinstance(cell, Sound):
                        path = Path(folder) / f"{secrets.token_hex(8)}.flac"
                        path.write_bytes(cell.flac)
                        cell = self._wandb.Audio(str(path), sample_rate=cell.sample_rate_hz)
                    cells.append(cell)
                rows.append(cells)
            self._run.log({table.name: self._wandb.Table(columns=list(table.columns), data=rows)})

    def artifact(self, artifact: Artifact, used: bool) -> None:
        """Declares an artifact by its content, from which the server knows a version that it has already.

        `use_artifact` refuses without a server. The call that it makes for an artifact of one's own is recorded offline
        too, and takes effect when the run is sent.
        """
        with self._staging():
            wandb_artifact = self._wandb.Artifact(artifact.name, type=artifact.kind, metadata=artifact.note)
            content = {"sha256": artifact.fingerprint, **artifact.content}
            # Sorted: the server tells versions apart by the bytes.
            with wandb_artifact.new_file("lineage.json") as file:
                json.dump(content, file, indent=2, sort_keys=True)
            if used:
                self._run._log_artifact(wandb_artifact, is_user_created=True, use_after_commit=True)
            else:
                self._run.log_artifact(wandb_artifact)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[None]:
        """Artifacts wait for `chorus sync` in the stage's folder, not in the home folder of this machine.

        W&B has no setting for it but the environment, which other stages of this process must not inherit.
        """
        if "WANDB_DATA_DIR" in os.environ:
            yield
            return
        os.environ["WANDB_DATA_DIR"] = str(self._stage.wandb)
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]

    def close(self) -> None:
        self._run.finish()
        # What went online is not to be sent again by `chorus sync`.
        if self._mode == "online":
            Path(self._run.dir).with_name(f"run-{self._run.id}{SENT_SUFFIX}").touch()

    def release(self) -> None:
        """Ends wandb-core and takes back the exit hook that would otherwise wait for a dead server."""
        if self._wandb is not None:
            self._wandb.teardown()

    def abandon(self, deadline_s: float) -> None:
        """Ends the wandb-core process of this process and its children: politely, then not."""
        self._abandoned = True
        helpers = []
        for child in psutil.Process(os.getpid()).children():
            # A process may end between being listed and being asked.
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith(_HELPER_NAME):
                    helpers += [*child.children(recursive=True), child]

        for helper in helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                helper.terminate()
        _, helpers = psutil.wait_procs(helpers, timeout=_half_until(deadline_s))
        for helper in helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                helper.kill()
        psutil.wait_procs(helpers, timeout=_half_until(deadline_s))

    def advice(self) -> str:
        return f"to send it later: chorus sync {self._stage.path.parent}"


def _read_id(file: Path) -> str | None:
    """The id of a stage's W&B run; None where there is none, or what another program left: a run begins anew then."""
    try:
        identity = read_json(file)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s); the stage begins a new W&B run", file, error)
        return None
    if identity is None:
        return None
    run_id = None
    if isinstance(identity, dict):
        run_id = identity.get("id")
    # It becomes a part of paths and of addresses.
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        logger.warning("%s holds no id of a W&B run; the stage begins a new one", file)
        return None
    return run_id


def _half_until(deadline_s: float) -> float:
    """Half of the time that is left."""
    return max(0.0, (deadline_s - time.monotonic()) / 2)
