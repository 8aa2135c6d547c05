"""What a recipe may say about a job on Kubernetes. Image, variables and secrets come from the command line."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

# Names of Kubernetes' objects: labels of DNS (RFC 1123).
OBJECT_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
ObjectName = Annotated[str, StringConstraints(pattern=f"^{OBJECT_NAME}$")]
# Where a volume appears; it stands in job descriptions and command lines.
MountPath = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$")]
ResourceName = Annotated[str, StringConstraints(pattern=rf"^({OBJECT_NAME}(\.{OBJECT_NAME})*/)?[A-Za-z0-9._-]+$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
NAME = re.compile(OBJECT_NAME)


class KubernetesConfig(BaseModel, frozen=True, extra="forbid"):
    """The job that `chorus submit --to kubernetes` describes."""

    form: Literal["trainjob", "jobset", "job"] = Field(
        default="trainjob",
        description="trainjob: of Kubeflow's trainer; jobset: where only JobSet is installed; job: plain Kubernetes",
    )
    volume: ObjectName | None = Field(default=None, description="claim of the volume that all pods share")
    mount: MountPath = Field(default="/runs", description="where the volume appears in the pods")
    queue: ObjectName | None = Field(default=None, description="local queue of Kueue; none: the job is not queued")
    gpu_resource: ResourceName = Field(default="nvidia.com/gpu", description="what the cluster calls a GPU")
    cpus_per_node: int | None = Field(default=None, ge=1, le=65_536, description="processor cores of each pod")
    memory_per_node: Quantity | None = Field(default=None, description="memory of each pod, such as 64Gi")
    # Of the whole job, by Kubernetes; a restart within a pod is cluster.max_restarts.
    restarts: int = Field(default=10, ge=0, le=10_000, description="times that the job is started anew after a loss")
