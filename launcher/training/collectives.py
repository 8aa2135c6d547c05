"""Plain values and tensors from one process to the others, as bytes.

The object collectives of torch.distributed unpickle what another process sends, which runs whatever is in it. JSON and
safetensors hold data alone.
"""

import json
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

TENSOR = "tensor"


def broadcast_json(value: Any) -> Any:
    """Return the first process's value (of texts, numbers, lists and mappings). Collective."""
    content = b""
    if dist.get_rank() == 0:
        content = json.dumps(value).encode()
    return json.loads(_broadcast(content))


def broadcast_tensor(tensor: Tensor | None) -> Tensor:
    """Return the first process's tensor, on the CPU, in every process; the others give None. Collective."""
    content = b""
    if dist.get_rank() == 0:
        assert tensor is not None
        content = safetensors.torch.save({TENSOR: tensor.cpu().contiguous()})
    return safetensors.torch.load(_broadcast(content))[TENSOR]


def all_gather_json(value: Any) -> list[Any]:
    """Return the values of all processes, by rank. Collective."""
    content = _as_tensor(json.dumps(value).encode())
    size = torch.tensor([len(content)], device=content.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    num_bytes = [int(other) for other in sizes]

    # All processes give as many bytes as the one with the most.
    padded = content.new_zeros(max(num_bytes))
    padded[: len(content)] = content
    gathered = [torch.empty_like(padded) for _ in num_bytes]
    dist.all_gather(gathered, padded)
    values = []
    for other, length in zip(gathered, num_bytes, strict=True):
        values.append(json.loads(other[:length].cpu().numpy().tobytes()))
    return values


def _broadcast(content: bytes) -> bytes:
    """Return the first process's bytes."""
    sent = _as_tensor(content)
    # The size goes first: only the first process knows how much comes.
    size = torch.tensor([len(sent)], device=sent.device)
    dist.broadcast(size, 0)
    received = sent
    if dist.get_rank() != 0:
        received = sent.new_empty(int(size))
    dist.broadcast(received, 0)
    return received.cpu().numpy().tobytes()


def _as_tensor(content: bytes) -> Tensor:
    """Bytes as a tensor where this process group's collectives take them."""
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    # A copy: torch warns of memory that it may not write to.
    return torch.tensor(bytearray(content), dtype=torch.uint8, device=device)
