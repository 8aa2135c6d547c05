"""Weights & Biases: one run per stage, grouped by the run of Chorus.

Whether to go online is decided from the environment and netrc alone. Everything that is to be sent later lies in the
stage's folder `wandb`, staged artifacts and sounds included.
"""

import contextlib
import json
import logging
import os
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
            self._mode, self._reason = "offline", f"the server gave {type(error).__name__}: {error}"
            wandb.teardown()  # wandb-core holds on to the id of a run that failed to open.
            self._run = self._initialise(wandb, "offline", claim_exit)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return f"{self._mode} ({self._reason})" + (f"; {self.advice()}" if self._mode == "offline" else "")

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
        hooks = sys.exit, sys.excepthook
        try:
            wandb.setup(settings=settings)
            claim_exit()
            return wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                tags=list(self._config.tags),
                group=self._run_name,
                name=self._stage.name,
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

    def _refuse_to_stop(self) -> None:
        """The stop button of the W&B page would by default interrupt the main thread of training."""
        logger.warning("a stop was asked for on the W&B page; training goes on, stop the run where it was started")

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

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(flatten_numbers(row))

    def summarize(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        shown = {name: self._wandb.Image(image, caption=_MAP_CAPTION) for name, image in images.items()}
        self._run.log({"step": step, **shown})

    def alert(self, alert: Alert) -> None:
        self._run.alert(title=alert.title, text=alert.text, level=alert.level)

    def table(self, table: Table) -> None:
        with self._staging(), tempfile.TemporaryDirectory() as folder:
            rows = [[self._cell(cell, Path(folder)) for cell in row] for row in table.rows]
            self._run.log({table.name: self._wandb.Table(columns=list(table.columns), data=rows)})

    def _cell(self, value: Any, folder: Path) -> Any:
        if not isinstance(value, Sound):
            return value
        path = folder / f"{secrets.token_hex(8)}.flac"
        path.write_bytes(value.flac)
        return self._wandb.Audio(str(path), sample_rate=value.sample_rate_hz)

    def artifact(self, artifact: Artifact, used: bool) -> None:
        """Declares an artifact by its content, from which the server knows a version that it has already.

        `use_artifact` refuses without a server. The call that it makes for an artifact of one's own is recorded offline
        too, and takes effect when the run is sent.
        """
        with self._staging():
            made = self._wandb.Artifact(artifact.name, type=artifact.kind, metadata=artifact.note)
            with made.new_file("lineage.json") as file:
                json.dump({"sha256": artifact.fingerprint, **artifact.content}, file, indent=2, sort_keys=True)
            if used:
                self._run._log_artifact(made, is_user_created=True, use_after_commit=True)
            else:
                self._run.log_artifact(made)

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
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith(_HELPER_NAME):
                    helpers += [*child.children(recursive=True), child]
        for signal in ("terminate", "kill"):
            for helper in helpers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(helper, signal)()
            _, helpers = psutil.wait_procs(helpers, timeout=max(0.0, (deadline_s - time.monotonic()) / 2))

    def advice(self) -> str:
        return f"to send it later: chorus sync {self._stage.path.parent}"
