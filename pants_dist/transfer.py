"""`train.init_from`: begin with the weights of another run or file. Output channels are matched by structure name."""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from pants_dist import config
from pants_dist.checkpoints import best_checkpoint
from pants_dist.errors import UserError
from pants_dist.networks import build_network
from pants_dist.settings import Settings

PREFIX = "network."  # of a network's weights in a checkpoint of Lightning's
AVERAGE = "average"  # where a checkpoint has Average.state_dict()
LEAST = 0.5  # share of the weights that must fit; with fewer the networks are not the same


@dataclass(frozen=True)
class Weights:
    """Weights by name as read from `path`, and the structures of their output channels (None: not known)."""

    path: Path
    tensors: dict[str, Tensor]
    structures: tuple[str, ...] | None


@dataclass(frozen=True)
class Loaded:
    """What a network took over: how many of its tensors, which structures; and what it begins anew."""

    tensors: int
    structures: tuple[str, ...]
    fresh_tensors: tuple[str, ...]
    fresh_structures: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.tensors} of {self.tensors + len(self.fresh_tensors)} tensors"]
        parts += [f"structures {', '.join(self.structures) or 'none'}"]
        parts += [f"begun anew: {', '.join(self.fresh_structures)}"] if self.fresh_structures else []
        return "; ".join(parts)


def read_weights(source: str | Path) -> Weights:
    """Weights of a run folder (its best checkpoint, else its last), of one of its checkpoints, or of another file.

    Averaged weights are taken where there are any. Another file holds a state_dict, or one under "state_dict". Raises
    UserError for what is not there or holds no weights.
    """
    path = _checkpoint(Path(source))
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError, ValueError, KeyError) as error:
        raise UserError(f"train.init_from {path}: cannot be read as weights; give a run folder or a checkpoint") from error
    tensors = _tensors(saved)
    if not tensors:
        raise UserError(f"train.init_from {path}: no weights in it; give a run folder or a checkpoint")
    settings = path.parent.parent / "config.yaml"
    structures = config.load(settings, []).model.outputs.channels if settings.is_file() else None
    return Weights(path, tensors, structures)


def _checkpoint(source: Path) -> Path:
    if found := best_checkpoint(source) or (source if source.is_file() else None):
        return found
    lacks = "has no checkpoint" if source.is_dir() else "no such file or folder"
    raise UserError(f"train.init_from {source}: {lacks}; give a run folder or a checkpoint")


def _tensors(saved: object) -> dict[str, Tensor]:
    state = saved
    if isinstance(saved, dict):
        state = saved[AVERAGE]["weights"] if AVERAGE in saved else saved.get("state_dict", saved)
    if not isinstance(state, dict):
        return {}
    return {str(name).removeprefix(PREFIX): value for name, value in state.items() if isinstance(value, Tensor)}


def load_weights(settings: Settings, network: nn.Module, source: Weights) -> Loaded:
    """Copy into `network`, which was built from `settings`, every tensor that the source has by the same name and shape.

    Tensors with output channels are copied channel by channel, by the names of the structures; a structure that the
    source does not have keeps its fresh weights. Raises UserError, saying what differs, where less than half fits.
    """
    mine, theirs = settings.model.outputs.channels, source.structures or ()
    shared = tuple(name for name in mine if name in theirs)
    axes, state = _structure_axes(settings, network), network.state_dict()
    lengths = {name: _lengths(tensor, axes[name], len(theirs)) for name, tensor in state.items()}
    found = {name: list(source.tensors[name].shape) for name in state if name in source.tensors}
    fitting = [name for name in found if found[name] == lengths[name] and (shared or not axes[name])]
    if sum(state[name].numel() for name in fitting) < LEAST * sum(tensor.numel() for tensor in state.values()):
        other = next(name for name in state if name not in fitting and not axes[name])
        there = f"has the shape {found[other]} there and {lengths[other]} here" if other in found else "is not there"
        raise UserError(
            f"train.init_from {source.path}: {len(fitting)} of {len(state)} tensors fit this {settings.model.name}, {other} "
            f"{there}; give the settings that it was trained with (model.name, model.channels, model.blocks), or another file"
        )
    into, of = ([names.index(structure) for structure in shared] for names in (mine, theirs))
    for name in fitting:
        tensor, given = state[name], source.tensors[name]
        if axes[name]:
            tensor[_grid(tensor, axes[name], into)] = given[_grid(tensor, axes[name], of)].to(tensor)
        else:
            tensor.copy_(given)
    fresh = tuple(name for name in state if name not in fitting)
    return Loaded(len(fitting), shared, fresh, tuple(name for name in mine if name not in shared))


def _lengths(tensor: Tensor, axes: tuple[int, ...], structures: int) -> list[int]:
    """The shape of the tensor in a network of so many structures."""
    return [structures if axis in axes else length for axis, length in enumerate(tensor.shape)]


def _grid(tensor: Tensor, axes: tuple[int, ...], channels: list[int]) -> tuple[Tensor, ...]:
    """Index of these channels along `axes`, and of everything along the others."""
    places = [channels if axis in axes else list(range(length)) for axis, length in enumerate(tensor.shape)]
    return torch.meshgrid(*(torch.tensor(place) for place in places), indexing="ij")


def _structure_axes(settings: Settings, network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The axes of each tensor that are as long as there are structures: those that grow in a network with one more."""
    model, data = settings.model, settings.data
    with torch.random.fork_rng(devices=[]):
        wider = build_network(model, len(model.outputs.channels) + 1, data.patch_zyx, data.spacing_mm_zyx).state_dict()
    return {
        name: tuple(axis for axis, length in enumerate(tensor.shape) if length != wider[name].shape[axis])
        for name, tensor in network.state_dict().items()
    }
