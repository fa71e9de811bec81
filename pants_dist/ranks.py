"""What the ranks of a run tell one another. A process without torch.distributed is the only one."""

from typing import Any

import torch
from torch import distributed


def count() -> int:
    """How many ranks train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def agreed(value: float, operation: Any = distributed.ReduceOp.MAX) -> float:
    """One number that all ranks share: the largest (or the sum) of what each has."""
    if count() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, operation)
    return float(tensor)


def gathered(mine: Any) -> list[Any]:
    """What each rank has, on all ranks, in their order."""
    parts: list[Any] = [mine] * count()
    if len(parts) > 1:
        distributed.all_gather_object(parts, mine)
    return parts
