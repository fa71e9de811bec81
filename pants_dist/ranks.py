"""What the ranks of a run tell one another. A process without torch.distributed is the only one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


def count() -> int:
    """How many ranks train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def agreed(*values: float) -> tuple[float, ...]:
    """Numbers that all ranks share: of each the largest of what they have."""
    if count() == 1:
        return values
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tuple(tensor.tolist())


def shared(mine: Sequence[float]) -> list[tuple[float, ...]]:
    """The numbers of each rank, on all ranks, in their order; each has as many."""
    if count() == 1:
        return [tuple(mine)]
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(mine, dtype=torch.float64, device=device)
    parts = [torch.empty_like(tensor) for _ in range(count())]
    distributed.all_gather(parts, tensor)
    return [tuple(part) for part in torch.stack(parts).tolist()]


def gathered(mine: Any) -> list[Any]:
    """What each rank has, on all ranks, in their order."""
    parts: list[Any] = [mine] * count()
    if len(parts) > 1:
        distributed.all_gather_object(parts, mine)
    return parts
