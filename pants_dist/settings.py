"""The settings of a run: frozen, typed and few. None means off.

The docstring under a field is what `pants-dist train --help` says of it. config.py reads and writes them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_type_hints

from pants_dist.errors import UserError
from pants_dist.strides import multiples_near, network_misfits
from pants_dist.structures import LESION, PANCREAS
from pants_dist.targets import Target, swapped_left_right, target_of


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, and which cases are trained on."""

    store: str
    """folder that "pants-dist convert" made"""
    patch_zyx: tuple[int, int, int] = (32, 64, 64)
    """voxels of a training patch along z, y, x"""
    spacing_mm_zyx: tuple[float, float, float] | None = None
    """voxel size that patches are resampled to, in mm; null: each case's own"""
    held_out_centers: tuple[str, ...] = ()
    """centers kept out of training altogether, scored as "held_out\""""
    held_out_fraction: float | None = None
    """share of the hospitals to hold out instead of named ones, drawn from hospitals with few, many and no tumors alike"""
    leave_one_center_out: int | None = None
    """number of the one hospital to hold out instead, from 0, in the order of their names"""
    pools: Literal["exclude", "keep"] = "exclude"
    """scans of pools of hospitals, where centers are held out; keep: all but pools that name a held-out hospital"""
    unknown: Literal["exclude", "keep"] = "exclude"
    """scans of unknown centers, where centers are held out"""
    clusters: Literal["refuse", "drop"] = "refuse"
    """training scans that look like a patient's of the held-out or the official test scans: refuse to go on, or drop them"""
    subset: int | None = None
    """train on a random subset of so many cases, stratified by tumor; larger ones contain smaller ones; null: on all"""
    split_file: str | None = None
    """split frozen by "pants-dist split", in place of all other settings of the split"""
    absent: Literal["refuse", "drop"] = "refuse"
    """cases of split_file that the store lacks: refuse to go on, or go on without them"""
    val_fraction: float = 0.2
    """share of each seen center's cases kept out of training, scored as "val_seen" (at least one case of two)"""
    foreground_fraction: float = 0.7
    """share of patches centred on one of model.structures that the case has; the rest lie anywhere"""
    structure_weights: dict[str, float] = field(default_factory=dict)
    """how often a patch is centred on a structure, against the others (1), like {pancreatic_lesion: 3}"""
    lesion_fraction: float | None = None
    """share of patches from cases with a lesion; null: as the cases come"""
    center_temperature: float = 1.0
    """1: centers by their number of cases; 0: every center equally often; between: in between"""
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    """share of patches by value of any column of the manifest, like {phase: {Arterial: 0.5}}"""
    max_window_mb: int = 128
    """largest box of a case that is read for one patch; where a turn or zoom asks for more, it is made milder"""
    io: Literal["pread", "mmap"] = "pread"
    """how files are read; mmap may be faster for few cases on a local disk, see "pants-dist bench read" """
    on_damage: Literal["raise", "skip"] = "raise"
    """a case whose bytes are wrong ends the run, or another patch takes the place of its own, which is counted"""
    stage: str | None = None
    """folder on the node's own disk to which cases are copied as they are first read; null: none"""
    stage_gb: float = 100.0
    """how much of that disk the copies may take; the other cases are read from the store"""


FROZEN = (  # what of Data a frozen split fixes
    "held_out_centers", "held_out_fraction", "leave_one_center_out", "pools", "unknown", "subset", "val_fraction",
)  # fmt: skip


MAY_CHANGE = (  # of a run that exists: who reads and who computes, never what is learnt
    "train.ranks", "train.micro_batch", "train.log_every", "train.checkpoint_minutes", "train.restarts",
    "train.min_nodes", "train.compile",
    "loader.kind", "loader.readers", "loader.ahead", "data.io", "data.stage", "data.stage_gb", "tracking.wandb",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How patches are changed at random, each by its sample's own seed. nnU-Net's: 30 degrees, 0.7 to 1.4, all of it."""

    rotation_degrees: float = 0.0
    """largest turn about each axis, of one patch in five"""
    scale: tuple[float, float] = (1.0, 1.0)
    """smallest and largest zoom out, of one patch in five"""
    mirror: str = ""
    """axes along which every second patch is mirrored, like zy; with x, left and right structures change places"""
    intensity: bool = False
    """noise, blur, brightness, contrast, low resolution and gamma, as often and as much as nnU-Net"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network and what it segments."""

    name: Literal["unet", "dynunet", "segresnet_ds", "swin_unetr", "mednext"] = "unet"
    """network, from MONAI; dynunet is nnU-Net's. All but unet and swin_unetr learn at several resolutions"""
    target: Literal["two_class", "all_28", "regions"] = "regions"
    """what is learnt. two_class: pancreas and lesion, softmax; all_28: PanTS's 28, softmax; regions: sigmoid"""
    structures: tuple[str, ...] = ("liver", PANCREAS, LESION)
    """with target regions: the structures to segment, one output channel each; they may overlap"""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """feature channels of each level, finest first (swin_unetr: of its four transformer stages)"""
    blocks: tuple[int, ...] = (1,)
    """residual blocks of each level, the last number for all that follow; 0: plain convolutions (unet, dynunet)"""
    expansion: tuple[int, ...] = (2,)
    """mednext: how many times wider its blocks are inside, for each level like model.blocks"""

    @property
    def outputs(self) -> Target:
        """The network's output channels. Raises UserError where `structures` are none, or one twice."""
        return target_of(self.target, self.structures)


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer, and how its learning rate goes down to zero. nnU-Net's: sgd, poly, lr 1e-2, weight_decay 3e-5."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with Nesterov momentum"""
    lr: float = 3e-3
    """learning rate after the warm-up"""
    schedule: Literal["poly", "cosine"] = "poly"
    """decay of the learning rate: polynomial with exponent 0.9, or half a cosine"""
    momentum: float = 0.99
    """momentum of sgd"""
    weight_decay: float = 1e-5
    """weight decay"""
    clip_norm: float = 12.0
    """largest norm of the gradient; longer ones are scaled down to it"""
    warmup_steps: int = 10
    """steps over which the learning rate rises"""
    ema: float | None = None
    """decay of the moving average of the weights, which is then what is scored, like 0.999; null: none"""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Who reads patches, and how far ahead."""

    kind: Literal["ray", "local"] = "ray"
    """ray: actors anywhere in the cluster; local: processes of this machine. Both give the same batches"""
    readers: int = 2
    """reading processes for each rank"""
    ahead: int = 8
    """micro-batches that a rank has on their way"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how wide, and what is kept."""

    steps: int = 1000
    """optimizer steps of the whole run; may be raised later to go on"""
    ranks: int = 1
    """training processes on this machine: one for each GPU"""
    batch: int = 2
    """patches of an optimizer step, over all ranks"""
    micro_batch: int = 2
    """patches that a rank sends through the network at once; gradients are accumulated over the rest"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    restarts: int = 3
    """how often ranks are started again from the last checkpoint after one of them was killed"""
    min_nodes: int | None = None
    """nodes with which a run goes on where the others are lost; null: it ends, to be started again on as many"""
    init_from: str | None = None
    """run folder or checkpoint whose weights a new run begins with, by structure; null: random ones"""
    checkpoint_minutes: float = 10.0
    """minutes between checkpoints: what a killed run loses at most"""
    batch_dice: bool = False
    """Dice of all patches of a step, over all ranks, taken as one, instead of each patch's own"""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """of the network's arithmetic; auto: bf16 where the GPU has it. Weights and loss are always float32"""
    compile: bool = False
    """torch.compile the network: minutes at the start, faster steps on a GPU"""
    on_nan: Literal["stop", "skip"] = "stop"
    """a step whose loss or gradient is no number ends the run, naming step and case, or is left out and counted"""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Cases scored during training."""

    every: int | None = None
    """steps between validations; null: none"""
    cases: int | None = 8
    """cases of seen and of held-out centers that are scored each time, spread over centers; null: all"""
    overlap: float = 0.5
    """overlap of neighbouring windows when a whole case is predicted, as a share of the patch"""
    best: str = "dsc"
    """what decides which checkpoint is the best, on seen centers alone: dsc (the mean), or one structure's like dsc/pancreas"""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where metrics go besides the run folder."""

    wandb: Literal["off", "offline", "online"] = "offline"
    """Weights & Biases: online (as the run goes), offline (when "pants-dist sync" is told to) or off (never)"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run, apart from its name."""

    seed: int = 0
    """decides the initial weights, and what every step reads"""
    runs: str = "runs"
    """folder of all run folders"""
    data: Data
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    loader: Loader = field(default_factory=Loader)
    train: Train = field(default_factory=Train)
    validation: Validation = field(default_factory=Validation)
    tracking: Tracking = field(default_factory=Tracking)


class Setting(NamedTuple):
    """One setting by its dotted name: its type, its default (MISSING: it must be given) and its meaning."""

    name: str
    hint: Any
    default: Any
    meaning: str


@cache
def catalog() -> dict[str, Setting]:
    """Every setting by its dotted name, in the order of the classes above."""
    return {setting.name: setting for setting in _settings_of(Settings, "")}


def _settings_of(section: type, prefix: str) -> Iterator[Setting]:
    from docstring_parser import parse_from_object

    meanings = {entry.arg_name: entry.description or "" for entry in parse_from_object(section).params}
    hints = get_type_hints(section)
    for entry in fields(section):
        if is_dataclass(hints[entry.name]):
            yield from _settings_of(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            yield Setting(prefix + entry.name, hints[entry.name], default, meanings[entry.name])


def flat(settings: Settings) -> dict[str, Any]:
    """Value of every setting by its dotted name."""
    nested = asdict(settings)
    parts = {name: name.partition(".") for name in catalog()}
    return {name: nested[section][leaf] if leaf else nested[name] for name, (section, _, leaf) in parts.items()}


def check(settings: Settings) -> None:
    """Raises UserError, with the values that would fit, where settings alone show that the run cannot work."""
    for problem in (*_out_of_range(settings), *_misfits(settings)):
        raise UserError(problem)


RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("1 or more", lambda value: value >= 1, (
        "train.steps", "train.ranks", "train.batch", "train.micro_batch", "train.log_every", "loader.readers",
        "loader.ahead", "data.max_window_mb", "validation.every", "validation.cases", "model.channels", "model.expansion",
        "data.patch_zyx", "data.subset",
    )),
    ("above 0", lambda value: 0 < value < math.inf, (
        "optim.lr", "optim.clip_norm", "train.checkpoint_minutes", "data.spacing_mm_zyx", "data.stage_gb",
    )),
    ("0 or more", lambda value: 0 <= value < math.inf, (
        "seed", "train.restarts", "optim.weight_decay", "optim.warmup_steps", "model.blocks", "data.leave_one_center_out",
    )),
    ("above 0 and below 1", lambda value: 0 < value < 1, ("data.held_out_fraction",)),
    ("0 or more and below 1", lambda value: 0 <= value < 1, (
        "data.val_fraction", "validation.overlap", "optim.momentum", "optim.ema",
    )),
    ("between 0 and 1", lambda value: 0 <= value <= 1, (
        "data.foreground_fraction", "data.lesion_fraction", "data.center_temperature",
    )),
    ("between 0 and 90", lambda value: 0 <= value <= 90, ("augment.rotation_degrees",)),
    ("between 0.25 and 4", lambda value: 0.25 <= value <= 4, ("augment.scale",)),
)  # fmt: skip


def _out_of_range(settings: Settings) -> Iterator[str]:
    values = flat(settings)
    for words, fits, names in RANGES:
        for name in names:
            value = values[name]
            parts = value if isinstance(value, tuple) else (value,)
            if not all(part is None or fits(part) for part in parts):
                yield f"{name} is {_plain(value)}; it must be {words}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _misfits(settings: Settings) -> Iterator[str]:
    data, model, train = settings.data, settings.model, settings.train
    if train.batch % train.ranks:
        fits = " or ".join(str(size) for size in multiples_near(train.batch, train.ranks))
        yield f"train.batch is {train.batch}, which {train.ranks} ranks (train.ranks) cannot share evenly; use {fits}"
    if len(ways := _held_out_by(data)) > 1:
        yield f"data.{ways[0]} and data.{ways[1]} both say which centers are held out; keep one of them"
    if model.target != "regions" and model.structures != Model.structures:
        yield f"model.structures is set, but model.target {model.target} has its own; leave it out, or use target regions"
    names = model.outputs.structures
    yield from _augment_misfits(settings.augment, names)
    if stray := sorted(set(data.structure_weights) - set(names)):
        yield f"data.structure_weights: {stray[0]!r} is not among the structures learnt ({', '.join(names)})"
    if settings.validation.best not in (choices := ["dsc", *(f"dsc/{name}" for name in names)]):
        yield f"validation.best is {settings.validation.best!r}; use one of {', '.join(choices)}"
    if any(not 0 <= weight < math.inf for weight in data.structure_weights.values()):
        yield f"data.structure_weights is {data.structure_weights}; each must be 0 or more"
    yield from network_misfits(model, data.patch_zyx, data.spacing_mm_zyx)


def _held_out_by(data: Data) -> list[str]:
    ways = ("held_out_centers", "held_out_fraction", "leave_one_center_out")
    return [name for name in ways if getattr(data, name) not in ((), None)]


def _augment_misfits(augment: Augment, structures: tuple[str, ...]) -> Iterator[str]:
    low, high = augment.scale
    if low > high:
        yield f"augment.scale is {[low, high]}; the smaller one comes first"
    if set(augment.mirror) - set("zyx") or len(set(augment.mirror)) < len(augment.mirror):
        yield f"augment.mirror is {augment.mirror!r}; use some of the letters z, y, x, each once"
    if "x" in augment.mirror:
        try:
            swapped_left_right(structures)
        except UserError as error:
            yield f"augment.mirror is {augment.mirror!r}: {error}"
