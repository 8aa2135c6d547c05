"""A run as a job of Kubernetes: a TrainJob of Kubeflow's trainer, a JobSet, or a plain Job.

One pod is one node, and starts `chorus node` with the variables of torchrun; nothing logs in to a pod. A pod that is
asked to end has time to save, and is started again without being counted; what a restart would only meet again (exit
codes 2, 3, 4 and 6) ends the job. Every description goes through the published models of the API, and one with a field
that they do not have is refused.
"""

import json
import math
from typing import Any

from launcher.engines.programs import ask
from launcher.engines.rendezvous import READY_FILE_VARIABLE
from launcher.engines.submission import Submission
from launcher.errors import ConfigError
from launcher.recipe.kubernetes import NAME

# The name that Kubeflow's trainer expects of the trainer's container and of its jobs.
CONTAINER = "node"
RECIPE_FOLDER = "/etc/chorus"
READY_FILE = "/tmp/chorus-ready"  # noqa: S108  in the pod's own container, where nobody else is
MASTER_PORT = 29400
# Beyond cluster.stop_deadline_s, in which the stage saves: for the processes to end, and the other nodes to hear of it.
LEAVE_S = 60
# A run's exit codes: launcher/errors.py. 1 is a fault of ours, and counts like any other.
LASTING_CODES = [2, 3, 4, 6]
STOPPED_CODE = 75
INSTANCE = "app.kubernetes.io/instance"
MANAGED = "app.kubernetes.io/managed-by"
KINDS = {
    "TrainJob": "trainjobs.trainer.kubeflow.org",
    "JobSet": "jobsets.jobset.x-k8s.io",
    "Job": "jobs.batch",
}
# What goes with a job, and is removed with it.
COMPANIONS = ("configmaps", "services", "trainingruntimes.trainer.kubeflow.org")


def describe(submission: Submission) -> list[dict[str, Any]]:
    """Return the objects of a job, in the order in which they are made; ConfigError when a setting is missing."""
    config = submission.recipe.cluster.kubernetes
    if submission.image is None:
        raise ConfigError("--to kubernetes needs --image: a container image with Chorus (make container builds one).")
    if config.volume is None and "://" not in submission.run_dir:
        raise ConfigError(
            "A pod's own disk ends with it. Name the claim of a volume for the run folder and the shards with "
            "--set cluster.kubernetes.volume=CLAIM, or give a --run-dir in an object store."
        )
    inside = submission.run_dir == config.mount or submission.run_dir.startswith(f"{config.mount}/")
    if config.volume is not None and not inside and "://" not in submission.run_dir:
        raise ConfigError(
            f"--run-dir is {submission.run_dir}, and the volume {config.volume} appears at {config.mount} "
            "(cluster.kubernetes.mount). Give a folder in there."
        )

    documents = []
    recipe_text = submission.recipe_text()
    if recipe_text is not None:
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": _metadata(submission, "recipe"),
                "data": {"recipe.yaml": recipe_text},
            }
        )
    match config.form:
        case "trainjob":
            documents += _train_job(submission)
        case "jobset":
            documents += _job_set(submission)
        case "job":
            documents += _job(submission)
    return [_checked(document) for document in documents]


def _metadata(submission: Submission, suffix: str = "") -> dict[str, Any]:
    name = submission.name
    if suffix:
        name = f"{name}-{suffix}"
    return {"name": name, "labels": _labels(submission)}


def _labels(submission: Submission) -> dict[str, str]:
    return {MANAGED: "chorus", INSTANCE: submission.name}


def _queued_metadata(submission: Submission) -> dict[str, Any]:
    """Metadata of the object that Kueue admits."""
    metadata = _metadata(submission)
    queue = submission.recipe.cluster.kubernetes.queue
    if queue is not None:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = queue
    return metadata


def _train_job(submission: Submission) -> list[dict[str, Any]]:
    # A TrainJob cannot say itself what exit codes mean, so that it has a runtime of its own.
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(submission),
        "spec": {
            "mlPolicy": {"numNodes": submission.nodes, "torch": {}},
            "template": {"spec": _job_set_spec(submission, {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"})},
        },
    }
    trainer: dict[str, Any] = {"numNodes": submission.nodes, "numProcPerNode": submission.processes_per_node}
    resources = _resources(submission)
    if resources:
        trainer["resourcesPerNode"] = resources
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _queued_metadata(submission),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": submission.name,
            },
            "trainer": trainer,
        },
    }
    return [runtime, job]


def _job_set(submission: Submission) -> list[dict[str, Any]]:
    master = f"{submission.name}-{CONTAINER}-0-0.{submission.name}"
    return [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": _queued_metadata(submission),
            "spec": _job_set_spec(submission, {}, _place_variables(submission, master)),
        }
    ]


def _job_set_spec(
    submission: Submission, job_labels: dict[str, str], variables: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    restarts = submission.recipe.cluster.kubernetes.restarts
    rule = {"name": "lasting", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        # Nodes look each other up before any of them is ready.
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": restarts, "rules": [rule]},
        "replicatedJobs": [
            {
                "name": CONTAINER,
                "replicas": 1,
                "template": {
                    "metadata": {"labels": job_labels | _labels(submission)},
                    "spec": _job_spec(submission, variables or []),
                },
            }
        ],
    }


def _job(submission: Submission) -> list[dict[str, Any]]:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(submission),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {INSTANCE: submission.name},
        },
    }
    variables = _place_variables(submission, f"{submission.name}-0.{submission.name}")
    spec = _job_spec(submission, variables)
    spec["template"]["spec"]["subdomain"] = submission.name
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _queued_metadata(submission), "spec": spec}
    return [service, job]


def _place_variables(submission: Submission, master: str) -> list[dict[str, Any]]:
    """The variables that Kubeflow's trainer would set."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "PET_NNODES", "value": str(submission.nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(submission.processes_per_node)},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "PET_MASTER_ADDR", "value": master},
        {"name": "PET_MASTER_PORT", "value": str(MASTER_PORT)},
    ]


def _job_spec(submission: Submission, variables: list[dict[str, Any]]) -> dict[str, Any]:
    cluster = submission.recipe.cluster
    pod: dict[str, Any] = {
        # As pod failure policies demand.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(cluster.stop_deadline_s) + LEAVE_S,
        # A run asks nothing of Kubernetes.
        "automountServiceAccountToken": False,
        "containers": [_container(submission, variables)],
    }
    volumes = _volumes(submission)
    if volumes:
        pod["volumes"] = [volume for volume, _ in volumes]
    if submission.priority is not None:
        pod["priorityClassName"] = submission.priority
    return {
        "completionMode": "Indexed",
        "completions": submission.nodes,
        "parallelism": submission.nodes,
        "backoffLimit": cluster.kubernetes.restarts,
        "podFailurePolicy": {
            # The first rule that fits counts.
            "rules": [
                {"action": "FailJob", "onExitCodes": _exit_codes(LASTING_CODES)},
                # Saved and stopped: an eviction, or the stop of another node.
                {"action": "Ignore", "onExitCodes": _exit_codes([STOPPED_CODE])},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                # All else, such as 5 and signals, counts as a restart.
            ]
        },
        "template": {"metadata": {"labels": _labels(submission)}, "spec": pod},
    }


def _exit_codes(codes: list[int]) -> dict[str, Any]:
    return {"containerName": CONTAINER, "operator": "In", "values": codes}


def _container(submission: Submission, variables: list[dict[str, Any]]) -> dict[str, Any]:
    recipe = submission.source
    if submission.recipe_text() is not None:
        recipe = f"{RECIPE_FOLDER}/recipe.yaml"
    words = submission.node_arguments(recipe, "torchrun")
    environment = [{"name": READY_FILE_VARIABLE, "value": READY_FILE}, *variables]
    if submission.gpus_per_node is None:
        environment.append({"name": "DS_ACCELERATOR", "value": "cpu"})
    for name, value in submission.environment.items():
        environment.append({"name": name, "value": _literal(value)})
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": submission.image,
        # Not by a shell: what a word holds is nobody's program.
        "command": [_literal(word) for word in words],
        "env": environment,
        # Ready is a node that has met the others.
        "readinessProbe": {"exec": {"command": ["test", "-e", READY_FILE]}, "periodSeconds": 5},
    }
    if submission.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in submission.secrets]
    resources = _resources(submission)
    if resources:
        container["resources"] = resources
    volumes = _volumes(submission)
    if volumes:
        container["volumeMounts"] = [mount for _, mount in volumes]
    return container


def _literal(text: str) -> str:
    # Kubernetes puts variables in for $(NAME); a doubled dollar stands for itself.
    return text.replace("$(", "$$(")


def _resources(submission: Submission) -> dict[str, Any]:
    config = submission.recipe.cluster.kubernetes
    amounts = {}
    if config.cpus_per_node is not None:
        amounts["cpu"] = str(config.cpus_per_node)
    if config.memory_per_node is not None:
        amounts["memory"] = config.memory_per_node
    if submission.gpus_per_node is not None:
        amounts[config.gpu_resource] = str(submission.gpus_per_node)
    if not amounts:
        return {}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _volumes(submission: Submission) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the volumes of a pod, each with its mount."""
    config = submission.recipe.cluster.kubernetes
    volumes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if config.volume is not None:
        claim = {"name": "runs", "persistentVolumeClaim": {"claimName": config.volume}}
        volumes.append((claim, {"name": "runs", "mountPath": config.mount}))
    if submission.recipe_text() is not None:
        recipe = {"name": "recipe", "configMap": {"name": f"{submission.name}-recipe"}}
        volumes.append((recipe, {"name": "recipe", "mountPath": RECIPE_FOLDER, "readOnly": True}))
    # Shared memory of a container is 64 MiB, and NCCL's is more.
    shared = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    volumes.append((shared, {"name": "shared-memory", "mountPath": "/dev/shm"}))  # noqa: S108  a mount, no file
    return volumes


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document as the published model of its kind writes it; ConfigError for what the model does not have."""
    try:
        from kubeflow_trainer_api import models
    except ImportError:
        raise ConfigError(
            "Job descriptions of Kubernetes are checked with its published models, which are not installed here: "
            "pip install 'chorus-asr[kubernetes]'."
        ) from None
    published: dict[str, Any] = {
        "ConfigMap": models.IoK8sApiCoreV1ConfigMap,
        "Service": models.IoK8sApiCoreV1Service,
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
        "TrainJob": models.TrainerV1alpha1TrainJob,
        "JobSet": models.JobsetV1alpha2JobSet,
        "Job": models.IoK8sApiBatchV1Job,
    }
    # Fields that a model does not have are dropped by it without a word.
    written = published[document["kind"]].from_dict(document).to_dict()
    if written != document:
        raise ConfigError(
            f"The {document['kind']} of this job has fields that the installed kubeflow-trainer-api does not know. "
            "Install the versions that Chorus asks for: pip install 'chorus-asr[kubernetes]'."
        )
    return written


def hand_over(description: str, namespace: str | None) -> str:
    """Have the cluster check the objects of a file, then make them; return what kubectl says."""
    create = ["kubectl", *_namespace(namespace), "create", "-f", description]
    ask([*create, "--dry-run=server"], "have the cluster check the job")
    return ask(create, "make the job")


def list_jobs(namespace: str | None) -> list[dict[str, Any]]:
    """Return the jobs that Chorus described, each in the cluster's own words."""
    jobs = []
    for kind, resource in KINDS.items():
        # What makes others, a TrainJob its JobSet, has the same labels as they, and is the one that was submitted.
        if not _has_resource(resource):
            continue
        command = ["kubectl", *_namespace(namespace), "get", resource, "-l", f"{MANAGED}=chorus", "-o", "json"]
        for item in json.loads(ask(command, f"list {resource}"))["items"]:
            if item["metadata"].get("ownerReferences"):
                continue
            jobs.append({"kind": kind, "name": item["metadata"]["name"], "status": item.get("status", {})})
    return jobs


def log_command(job: str, follow: bool, namespace: str | None) -> list[str]:
    """Return the command that shows what the first node of a job has written."""
    selector = f"{INSTANCE}={_checked_name(job)},batch.kubernetes.io/job-completion-index=0"
    command = ["kubectl", *_namespace(namespace), "logs", "-l", selector, "-c", CONTAINER, "--tail=-1"]
    if follow:
        command.append("--follow")
    return command


def stop(job: str, namespace: str | None) -> str:
    """Remove a job and what goes with it: its pods get the signal on which a run saves."""
    name = _checked_name(job)
    if not any(item["name"] == name for item in list_jobs(namespace)):
        raise ConfigError(
            f"There is no job {name} of Chorus here. `chorus jobs --on kubernetes` lists those there are."
        )
    said = ""
    for resource in (*KINDS.values(), *COMPANIONS):
        if not _has_resource(resource):
            continue
        selector = f"{MANAGED}=chorus,{INSTANCE}={name}"
        command = ["kubectl", *_namespace(namespace), "delete", resource, "-l", selector, "--wait=false"]
        said += ask(command, f"remove {resource} of {name}")
    return said


def _has_resource(resource: str) -> bool:
    """Return whether the cluster has a kind of objects; Kubeflow and JobSet may not be installed there."""
    name, _, group = resource.partition(".")
    # Those of Kubernetes itself are always there.
    if "." not in group:
        return True
    said = ask(["kubectl", "api-resources", f"--api-group={group}", "-o", "name"], "list what the cluster has")
    return f"{name}.{group}" in said.split()


def _namespace(namespace: str | None) -> list[str]:
    if namespace is None:
        return []
    return [f"--namespace={_checked_name(namespace)}"]


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} is no name of Kubernetes: lower-case letters, digits and dashes.")
    return name
