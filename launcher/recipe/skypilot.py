"""What a recipe may say about a managed job of SkyPilot. Image, variables and secrets come from the command line."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from launcher.recipe.kubernetes import MountPath, ObjectName

AcceleratorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Infrastructure = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*][A-Za-z0-9_.*-]*(/[A-Za-z0-9_.*:@-]+){0,2}$")]


class SkyPilotConfig(BaseModel, frozen=True, extra="forbid"):
    """The task that `chorus submit --to skypilot` describes."""

    accelerators: tuple[AcceleratorName, ...] = Field(
        default=(), description="kinds of GPUs, such as [H100, A100]: the first that is to be had"
    )
    fewer_gpus: bool = Field(
        default=False, description="take half, a quarter and so on of the GPUs of each node where no more are to be had"
    )
    spot: bool = Field(default=False, description="machines that may be taken away, at a lower price")
    infra: Infrastructure | None = Field(default=None, description="where, such as aws/us-east-1 or kubernetes")
    volume: ObjectName | None = Field(default=None, description="volume of SkyPilot that all nodes share")
    mount: MountPath = Field(default="/runs", description="where the volume appears on the nodes")
    restarts: int = Field(default=10, ge=0, le=10_000, description="times that the job is started anew after an error")
