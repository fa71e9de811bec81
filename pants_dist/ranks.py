"""What the ranks of a run tell one another. A process without torch.distributed is the only one."""

from typing import Any

import torch
from torch import distributed


def count() -> int:
    """How many ranks train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def agreed(*values: float, operation: Any = distributed.ReduceOp.MAX) -> tuple[float, ...]:
    """Numbers that all ranks share: of each the largest (or the sum) of what they have."""
    if count() == 1:
        return values
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, operation)
    return tuple(tensor.tolist())


def gathered(mine: Any) -> list[Any]:
    """What each rank has, on all ranks, in their order."""
    parts: list[Any] = [mine] * count()
    if len(parts) > 1:
        distributed.all_gather_object(parts, mine)
    return parts
