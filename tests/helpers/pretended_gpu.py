"""A GPU that is none: tensors that say they are on "cuda:0", and compute on the processors.

Within `PretendedGpu()`, `.to("cuda")` and factories with that device give such tensors. As with CUDA, an operation on
tensors of both devices is a RuntimeError, but for copies between them, for numbers (tensors without dimensions on the
processors), and for indices on the processors.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class GpuTensor(torch.Tensor):
    """A tensor whose values are those of `on_processors`."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    on_processors: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "GpuTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            # Not CUDA itself, whose driver would be asked for; the dispatch below says what device it is.
            device=torch.device("meta"),
            dispatch_device=True,
        )
        tensor.on_processors = values
        return tensor

    def tolist(self) -> Any:
        # Of a real GPU's tensor too, this gives plain numbers.
        return self.on_processors.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In inference mode the views of a module's parameters cannot be tensors like these.
        with torch.inference_mode(False), torch.no_grad():
            return _compute(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return _compute(func, args, kwargs or {})


def _compute(function: Any, arguments: Any, options: dict[str, Any]) -> Any:
    if function is torch.ops.prim.device.default:
        return GPU
    leaves, _ = tree_flatten((arguments, options))
    inputs = [leaf for leaf in leaves if isinstance(leaf, GpuTensor)]
    on_processors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, GpuTensor)]
    if inputs and function not in COPIES and any(tensor.dim() for tensor in on_processors):
        is_indexed = function in INDEXING and isinstance(arguments[0], GpuTensor)
        if not is_indexed:
            raise RuntimeError(f"{function}: Expected all tensors to be on the same device, cuda:0 and cpu")

    # Of copies to a device, and of new tensors on one; the device stands in any place.
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    to_gpu = bool(inputs)
    if devices:
        to_gpu = devices[0].type == "cuda"
    if function is torch.ops.aten.copy_.default:
        to_gpu = isinstance(arguments[0], GpuTensor)

    plain_arguments, plain_options = tree_map(_on_processors, (arguments, options))
    result = function(*plain_arguments, **plain_options)
    # What an operation changed in place stays the tensor that it was.
    wrappers = {id(tensor.on_processors): tensor for tensor in inputs}

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, GpuTensor):
            return leaf
        if id(leaf) in wrappers and not devices:
            return wrappers[id(leaf)]
        if to_gpu:
            return GpuTensor(leaf)
        return leaf

    return tree_map(wrap, result)


def _on_processors(leaf: Any) -> Any:
    if isinstance(leaf, GpuTensor):
        return leaf.on_processors
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf
