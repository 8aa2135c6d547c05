"""The variables with which engines say which node this is: each engine's, and what is wrong with them."""

import pytest

from launcher.engines.placement import Placement, read_placement
from launcher.errors import ConfigError

KUBEFLOW = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_NPROC_PER_NODE": "8",
    "PET_MASTER_ADDR": "base-node-0-0.base",
    "PET_MASTER_PORT": "29400",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}
PYTORCH_JOB = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "base-master-0", "MASTER_PORT": "23456"}
SKYPILOT = {
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "4",
}
SLURM = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07,11-12]",
    "SLURM_GPUS_ON_NODE": "8",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "MASTER_ADDR": "node-a",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "1"}

ENGINES = {
    "kubeflow": (KUBEFLOW, Placement("torchrun", 1, 2, "base-node-0-0.base", 29400, 8)),
    # Its port is torchrun's own.
    "torchrun": (TORCHRUN, Placement("torchrun", 1, 2, "node-a")),
    "PyTorchJob": (PYTORCH_JOB, Placement("torchrun", 1, 2, "base-master-0", 23456)),
    "skypilot": (SKYPILOT, Placement("skypilot", 1, 2, "10.0.0.1", None, 4)),
    "skypilot without GPUs": (
        SKYPILOT | {"SKYPILOT_NUM_GPUS_PER_NODE": "0"},
        Placement("skypilot", 1, 2, "10.0.0.1"),
    ),
    "slurm": (SLURM, Placement("slurm", 1, 2, "gpu07", None, 8)),
    "Open MPI": (OPEN_MPI, Placement("mpi", 1, 2, "node-a")),
    "MPICH": (MPICH, Placement("mpi", 1, 2)),
    "as many as there are devices": (
        KUBEFLOW | {"PET_NPROC_PER_NODE": "auto"},
        Placement("torchrun", 1, 2, "base-node-0-0.base", 29400),
    ),
    "one node needs no address": ({"PET_NNODES": "1", "PET_NODE_RANK": "0"}, Placement("torchrun", 0, 1)),
    "srun that speaks PMI to its tasks": (SLURM | MPICH, Placement("slurm", 1, 2, "gpu07", None, 8)),
    "SkyPilot on SLURM": (SKYPILOT | SLURM, Placement("skypilot", 1, 2, "10.0.0.1", None, 4)),
}


@pytest.mark.parametrize("name", ENGINES)
def test_every_engines_variables_place_a_node(name):
    environment, placement = ENGINES[name]
    assert read_placement(environment) == placement


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[01-04,09],cpu1", "gpu01"), ("rack[3-4]n[2,7]", "rack3n2"), ("n[5]", "n5")],
)
def test_the_first_of_slurms_nodes_is_where_the_others_meet(nodelist, first):
    assert read_placement(SLURM | {"SLURM_STEP_NODELIST": nodelist}).master_address == first


WRONG = {
    "nothing at all": ({}, "finds no variables of an engine"),
    "a batch script, which srun did not start": ({"SLURM_JOB_ID": "42", "SLURM_NNODES": "2"}, "finds no variables"),
    "no rank": ({k: v for k, v in KUBEFLOW.items() if k != "PET_NODE_RANK"}, "PET_NODE_RANK is not set"),
    "an empty rank": (KUBEFLOW | {"PET_NODE_RANK": " "}, "PET_NODE_RANK is not set"),
    "no address": ({k: v for k, v in KUBEFLOW.items() if k != "PET_MASTER_ADDR"}, "PET_MASTER_ADDR is not set"),
    "a range of nodes": (KUBEFLOW | {"PET_NNODES": "1:4"}, "PET_NNODES is '1:4'"),
    "no node": (KUBEFLOW | {"PET_NNODES": "0"}, "PET_NNODES is '0'"),
    "a rank beyond the nodes": (KUBEFLOW | {"PET_NODE_RANK": "2"}, "a whole number from 0 to 1"),
    "a negative rank": (SKYPILOT | {"SKYPILOT_NODE_RANK": "-1"}, "SKYPILOT_NODE_RANK is '-1'"),
    "digits of another script": (KUBEFLOW | {"PET_NODE_RANK": "١"}, "PET_NODE_RANK is"),
    "a number without end": (KUBEFLOW | {"PET_NNODES": "9" * 5000}, "PET_NNODES is '999"),
    "a port that is none": (KUBEFLOW | {"PET_MASTER_PORT": "70000"}, "PET_MASTER_PORT is '70000'"),
    "an option as address": (KUBEFLOW | {"PET_MASTER_ADDR": "-oProxy"}, "PET_MASTER_ADDR says"),
    "a command as address": (SKYPILOT | {"SKYPILOT_NODE_IPS": "$(id) b"}, "SKYPILOT_NODE_IPS says"),
    "other nodes than addresses": (SKYPILOT | {"SKYPILOT_NUM_NODES": "3"}, "SKYPILOT_NUM_NODES is 3, but"),
    "no addresses": ({"SKYPILOT_NODE_RANK": "0"}, "SKYPILOT_NODE_IPS is not set"),
    "many tasks on a node": (SLURM | {"SLURM_STEP_NUM_TASKS": "16"}, "--ntasks-per-node=1"),
    "SLURM without a number": ({k: v for k, v in SLURM.items() if k != "SLURM_NODEID"}, "SLURM_NODEID is not set"),
    "many processes of torchrun": (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "--nproc-per-node=1"),
    "many processes of MPI": (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "ppr:1:node"),
    "MPI without a size": ({"PMI_RANK": "0"}, "PMI_SIZE is not set"),
    "two engines": (SLURM | {"PMI_RANK": "0", "PMI_SIZE": "2"}, "Two engines disagree"),
    "two sizes": (SKYPILOT | KUBEFLOW | {"PET_NNODES": "4"}, "by torchrun it is node 1 of 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_variables_that_are_missing_wrong_or_contradict_each_other_are_one_paragraph(name):
    environment, fragment = WRONG[name]
    with pytest.raises(ConfigError, match=r"\S") as error:
        read_placement(environment)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_where_two_engines_disagree_the_one_that_is_named_counts():
    environment = SLURM | {"PMI_RANK": "0", "PMI_SIZE": "2"}
    assert read_placement(environment, "slurm").node_rank == 1
    assert read_placement(environment, "mpi").node_rank == 0
    with pytest.raises(ConfigError, match="--engine is skypilot"):
        read_placement(environment, "skypilot")
