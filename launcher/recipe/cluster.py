"""Where a run takes place: processes, hosts, precision and deadlines.

Apart from `precision` nothing here changes what is computed, so a run may go on elsewhere. `threads` may change the
last bits: other numbers of cores add in another order.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from data.remote.settings import StorageConfig
from launcher.recipe.kubernetes import KubernetesConfig
from launcher.recipe.skypilot import SkyPilotConfig
from launcher.recipe.slurm import SlurmConfig

# A host name, or an address of IPv4 or IPv6; it stands on command lines of every host.
ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ClusterConfig(BaseModel, frozen=True, extra="forbid"):
    """Where the run takes place. Apart from `precision`, nothing here changes what is computed."""

    processes: int = Field(
        default=1, ge=1, le=65_536, description="training processes; one per GPU where there are GPUs"
    )
    expert_parallel: int = Field(
        default=1, ge=1, le=65_536, description="processes that share one set of experts, in stages with experts"
    )
    deepspeed: str = Field(default="zero2", description="a name in ds_configs/ or a JSON file")
    # On processors with AVX512-bf16 and without AMX, oneDNN's bf16 products of small models run at half the speed of
    # fp32.
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of matrix products; weights and moments are fp32"
    )
    # Hosts with other numbers of cores add in another order: set it where runs are to be equal bit for bit.
    threads: int | None = Field(
        default=None, ge=1, le=65_536, description="CPU threads per process; none: cores // processes"
    )
    data_workers: int = Field(default=2, ge=1, le=1024, description="threads per process that read and decode audio")

    launcher: Literal["local", "ssh", "no_ssh", "slurm", "node"] | None = Field(
        default=None,
        description="local: all processes on this machine; ssh: one connection to each host of the hostfile; no_ssh: "
        "the same command is started on every host by hand; slurm: a batch job; node: what `chorus node` sets; none: "
        "ssh with a hostfile, else local",
    )
    hostfile: Path | None = Field(default=None, description="hosts to train on, one `NAME slots=N` a line")
    include: str | None = Field(default=None, description="only these of the hostfile: NAME[:SLOT,...], joined by @")
    exclude: str | None = Field(default=None, description="not these of the hostfile: NAME[:SLOT,...], joined by @")
    master_address: str | None = Field(
        default=None, description="where the processes find the first one; none: the name of the first host"
    )
    # To be set behind a firewall. A port that is taken costs one restart with another.
    master_port: int | None = Field(
        default=None, ge=1, le=65535, description="port of the first process; none: a free one, new at every start"
    )
    exchange_bytes_per_s: float | None = Field(
        default=None,
        gt=0,
        le=1e18,
        description="what a host sends to others in an all-to-all, as `chorus doctor` measures it; `chorus plan` "
        "judges by it, and assumes 10 Gbit/s without",
    )
    # Without being named go along: DS_ACCELERATOR, LD_LIBRARY_PATH, GLOO_*, NCCL_*, TORCH_NCCL_*, WANDB_*.
    environment: tuple[str, ...] = Field(
        default=(), description="names of further environment variables that processes on other hosts get"
    )
    # ssh takes the first value of an option, and these come before Chorus's own. Of a recipe's file only a few are
    # taken (file_limits.py): most can start programs.
    ssh_options: tuple[str, ...] = Field(default=(), description="options of ssh, such as [-p, '2222']")
    slurm: SlurmConfig = Field(default_factory=SlurmConfig, description="the job of launcher slurm")
    kubernetes: KubernetesConfig = Field(
        default_factory=KubernetesConfig, description="the job of `chorus submit --to kubernetes`"
    )
    skypilot: SkyPilotConfig = Field(
        default_factory=SkyPilotConfig, description="the job of `chorus submit --to skypilot`"
    )

    storage: StorageConfig = Field(
        default_factory=StorageConfig,
        description="how shards are read: retries, the cache of remote ones, what may break",
    )

    try_memory: bool = Field(
        default=True,
        description="run the worst micro-batch of each length once before the first step, and refuse what does not fit "
        "into memory; without, it is split when it is met",
    )
    profile_steps: tuple[int, int] | None = Field(
        default=None,
        description="[first, stop): training steps that every process profiles into STAGE/profile/ as a Chrome trace",
    )
    profile_start: bool = Field(
        default=False,
        description="show where the time goes from a training stage's start to the end of its first step",
    )

    # The first restart is immediate, and so is any after new checkpoints; others pause 1, 3, 7 s and so on up to 60 s.
    max_restarts: int = Field(
        default=3, ge=0, le=10**6, description="restarts of a stage within an hour, after a lost or hung process"
    )
    # A start reports each of its parts; units are made in it, and report every batch.
    startup_deadline_s: float = Field(
        default=300,
        gt=0,
        le=1e7,
        description="longest time until every process reports itself, and longest silence before its first step, in s",
    )
    # NFS remembers for up to a minute that a file was not there: stay well above that.
    stall_deadline_s: float = Field(
        default=120,
        gt=0,
        le=1e7,
        description="longest silence of a process in a step before the restart, in s; it reports every lane",
    )
    validation_deadline_s: float = Field(
        default=300,
        gt=0,
        le=1e7,
        description="longest silence of a process that validates, in s; it reports every batch",
    )
    save_deadline_s: float = Field(
        default=600,
        gt=0,
        le=1e7,
        description="longest silence of a process that saves or restores a checkpoint or saves the model, in s",
    )
    evaluation_deadline_s: float = Field(
        default=600,
        gt=0,
        le=1e7,
        description="longest silence of a process that evaluates, in s; it reports every recording and every search",
    )
    stop_deadline_s: float = Field(
        default=30, gt=0, le=1e7, description="time to save and leave when the run is stopped, in s"
    )

    @model_validator(mode="after")
    def _profile_has_steps(self) -> "ClusterConfig":
        if self.profile_steps and (not self.profile_range or self.profile_steps[0] < 0):
            raise ValueError(f"profile_steps is {list(self.profile_steps)}, which names no step; give [20, 30]")
        return self

    @property
    def profile_range(self) -> range:
        """The steps, counted from 0, that are profiled; empty without `profile_steps`."""
        if self.profile_steps is None:
            return range(0)
        return range(*self.profile_steps)

    @field_validator("master_address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not ADDRESS.fullmatch(value):
            raise ValueError(f"{value!r} is neither a host name nor an address, such as node-a, 10.0.0.1 or fd00::1")
        return value

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable; values are taken from the environment here")
        return names

    @model_validator(mode="after")
    def _launcher_and_hosts_fit(self) -> "ClusterConfig":
        if self.kind in ("ssh", "no_ssh") and not self.hostfile:
            raise ValueError(f"the launcher {self.kind} needs a hostfile; pass --hostfile FILE")

        if self.kind in ("local", "slurm", "node") and self.hostfile:
            raise ValueError(
                f"the launcher {self.kind} does not use a hostfile, which is {self.hostfile}; leave out one of both"
            )

        if not self.hostfile and (self.include or self.exclude):
            raise ValueError("include and exclude choose from a hostfile, and there is none; pass --hostfile FILE")

        if self.kind == "slurm" and self.processes % self.slurm.nodes:
            raise ValueError(
                f"processes is {self.processes}, which slurm.nodes, {self.slurm.nodes}, does not divide; every node "
                "gets the same number"
            )

        # SLURM sends its signal so long before the time limit; the run must be able to save and leave in that time.
        if self.kind == "slurm" and self.slurm.signal_s <= self.stop_deadline_s:
            raise ValueError(
                f"stop_deadline_s is {self.stop_deadline_s:g}, and slurm.signal_s, {self.slurm.signal_s}, is when the "
                "job is notified of its end; make it longer"
            )
        return self

    @property
    def kind(self) -> str:
        """How processes are started: the launcher, or what follows from the hostfile."""
        if self.launcher:
            return self.launcher
        if self.hostfile:
            return "ssh"
        return "local"
