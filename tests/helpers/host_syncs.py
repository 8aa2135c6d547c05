"""Where a computation would make the host wait for a GPU, counted on the processors.

A GPU's work is queued, and the host goes on. It waits where a value or a size has to be known: `.item()`, `.tolist()`,
`.cpu()`, `bool(tensor)`, and operations whose output is as large as what they find. CUDA's bincount waits too, for the
largest element. Every tensor counts as one of the GPU's.
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "launcher", "data")
aten = torch.ops.aten
# `.item()`, bool() and float() read a value.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    # Lengths that lie on a GPU are copied to the processors.
    aten._ctc_loss.Tensor,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# Of a tensor on the processors they are no operation.
METHODS = ("tolist", "cpu", "numpy")


class HostSyncs(TorchDispatchMode):
    """Counts where the host would wait, in `places`: file, function and operation, of the files of Chorus."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self._methods = {name: getattr(Tensor, name) for name in METHODS}

    def __enter__(self) -> "HostSyncs":
        for name, method in self._methods.items():
            setattr(Tensor, name, self._counted(name, method))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, method in self._methods.items():
            setattr(Tensor, name, method)

    def _counted(self, name: str, method: Any) -> Any:
        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            self._count(name)
            return method(tensor, *arguments, **options)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if _waits(func, args, options):
            self._count(func.__name__.partition(".")[0])
        return func(*args, **options)

    def _count(self, operation: str) -> None:
        place = "elsewhere"
        for frame in traceback.extract_stack():
            path = Path(frame.filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
                # The innermost of ours.
                place = f"{path.relative_to(ROOT)} {frame.name}"
        self.places[f"{place}: {operation}"] += 1


def _waits(function: Any, arguments: Any, options: dict[str, Any]) -> bool:
    if function in WAITING:
        return True
    if function is aten.repeat_interleave.Tensor:
        return options.get("output_size") is None
    if function in INDEXING:
        # A mask as an index is looked through for what is True.
        indices = [index for index in tree_leaves(arguments[1]) if isinstance(index, Tensor)]
        return any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    return False
