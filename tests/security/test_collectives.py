"""Between processes travel bytes that nobody unpickles, over ports that no other machine reaches."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.processes import agent_command, worker_command
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Host, Topology

ROOT = Path(__file__).parents[2]
# torch's collectives of objects, and what else unpickles.
UNPICKLING = {
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
    "pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
}
RANK = """
import json, os, sys
import psutil, torch
import torch.distributed as dist
from launcher.training.collectives import all_gather_json, broadcast_json, broadcast_tensor
from launcher.training.parallel import start_processes

start_processes(60)
rank = dist.get_rank()
values = {"ключ": [1, 0.1, None, "\\ud800"], "long": "x" * 100_000}
first = broadcast_json(values if rank == 0 else None)
gathered = all_gather_json(["key"] * (3 * rank))
tensor = torch.arange(6, dtype=torch.float64).reshape(2, 3).T / 7
received = broadcast_tensor(tensor if rank == 0 else None)
empty = broadcast_json("" if rank == 0 else "x"), broadcast_json(None)
dist.all_reduce(torch.ones(3))
process = psutil.Process()
listening = [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
print(json.dumps({
    "same": first == values and torch.equal(received, tensor) and received.dtype == tensor.dtype,
    "gathered": gathered, "empty": empty, "listening": listening,
}))
sys.stdout.flush()
dist.barrier()
os._exit(0)
"""


def test_values_arrive_as_they_were_sent_and_nothing_listens_for_other_machines():
    port = worker_command.free_port()
    ranks = []
    for rank in range(2):
        environment = worker_command.worker_environment(ClusterConfig(threads=1), 2, port)
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        command = [sys.executable, "-c", RANK]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    outputs = [rank.communicate(timeout=250)[0] for rank in ranks]
    reports = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert [report["same"] for report in reports] == [True, True]
    assert all(report["gathered"] == [[], ["key"] * 3] for report in reports)
    assert all(report["empty"] == ["", None] for report in reports)
    # The store and gloo.
    listening = reports[0]["listening"] + reports[1]["listening"]
    assert listening
    assert {address for address in listening if not address.startswith("127.") and address != "::1"} == set()


@pytest.mark.parametrize(
    ("hosts", "configured", "expected"),
    [
        (("node-a",), None, "127.0.0.1"),
        (("node-a", "node-b"), None, "node-a"),
        (("node-a",), "10.0.0.1", "10.0.0.1"),
    ],
)
def test_processes_of_one_host_meet_on_its_loopback_address(hosts, configured, expected):
    topology = Topology(tuple(Host(name, (0, 1), 2) for name in hosts))
    assert agent_command.master_address(ClusterConfig(master_address=configured), topology) == expected


@pytest.mark.parametrize("package", ["data", "model", "launcher"])
def test_no_module_unpickles(package):
    named = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name.partition(".")[0] for alias in node.names]
            named += [(path.name, name) for name in names if name in UNPICKLING]
            # torch.load and numpy.load unpickle where they are let.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = getattr(node.func.value, "id", "")
                safe = [keyword.arg for keyword in node.keywords if keyword.arg in ("allow_pickle", "weights_only")]
                if owner in ("np", "numpy", "torch") and not safe:
                    named.append((path.name, f"{owner}.load"))
    assert named == []
