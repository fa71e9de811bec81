"""Settings: frozen, typed, few. Read from YAML, overridden on the command line as `--section.setting VALUE`."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pants_dist.errors import UserError
from pants_dist.structures import PANTS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
        store: Folder of the converted dataset.
        patch_zyx: Voxels of a training patch along z, y, x.
        spacing_mm_zyx: Voxel spacing to train at; null is each case's own. Only null so far.
        held_out_centers: Centers that training never sees.
        val_fraction: Share of each seen center's cases kept for validation, at least one.
        foreground_fraction: Share of patches centred on a structure of model.structures.
    """

    store: str = "store"
    patch_zyx: tuple[int, int, int] = (96, 96, 96)
    spacing_mm_zyx: tuple[float, float, float] | None = None
    held_out_centers: tuple[str, ...] = ()
    val_fraction: float = 0.2
    foreground_fraction: float = 0.5


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: The network.
        structures: Structures to segment, one sigmoid output each; they may overlap.
        channels: Feature channels from the finest level to the coarsest; each level halves the patch.
        residual_units: Convolutions a level in residual units.
    """

    name: Literal["unet"] = "unet"
    structures: tuple[str, ...] = ("liver", "pancreas", "pancreatic_lesion")
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    residual_units: int = 1


@dataclass(frozen=True)
class Optim:
    """How weights move: AdamW with polynomial decay.

    Attributes:
        lr: Learning rate after the warm-up.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.
        clip_norm: Largest norm of the gradient.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 10
    clip_norm: float = 12.0


@dataclass(frozen=True)
class Loader:
    """How patches arrive.

    Attributes:
        kind: ray reads with actors anywhere in the cluster, local with processes of each rank; both give equal batches.
        readers: Reading processes a rank.
        ahead: Micro-batches that are under way a rank.
    """

    kind: Literal["ray", "local"] = "ray"
    readers: int = 2
    ahead: int = 8


@dataclass(frozen=True)
class Train:
    """How long and on what.

    Attributes:
        steps: Optimizer steps of the run.
        ranks: Training processes on this machine, one a GPU.
        batch: Patches an optimizer step, over all ranks.
        micro_batch: Patches a rank pushes through the network at once; more are accumulated.
        log_every: Steps between lines of metrics.jsonl.
        checkpoint_minutes: Minutes between checkpoints.
    """

    steps: int = 1000
    ranks: int = 1
    batch: int = 2
    micro_batch: int = 2
    log_every: int = 10
    checkpoint_minutes: float = 10.0


@dataclass(frozen=True)
class Validation:
    """Scoring, during training and after it.

    Attributes:
        every: Steps between validations during training; null for none.
        cases: Cases scored at each, of seen centers and as many of held-out ones.
        overlap: Overlap of neighbouring windows, as a share of the patch.
    """

    every: int | None = None
    cases: int = 8
    overlap: float = 0.5


@dataclass(frozen=True)
class Tracking:
    """Where metrics go besides the run folder.

    Attributes:
        wandb: Weights & Biases; offline needs no account and no network.
    """

    wandb: Literal["off", "offline", "online"] = "offline"


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
        seed: Decides every sample, every augmentation and the first weights.
        runs: Folder of the run folders.
    """

    seed: int = 0
    runs: str = "runs"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    loader: Loader = field(default_factory=Loader)
    train: Train = field(default_factory=Train)
    validation: Validation = field(default_factory=Validation)
    tracking: Tracking = field(default_factory=Tracking)


def names(settings_type: Any = Settings, prefix: str = "") -> list[str]:
    """Every setting by its dotted name."""
    found: list[str] = []
    for item in fields(settings_type):
        inner = item.default_factory if is_dataclass(item.default_factory) else None
        found += names(inner, f"{prefix}{item.name}.") if inner else [f"{prefix}{item.name}"]
    return found


def parser() -> "ArgumentParser":
    """The parser of all settings; its help lists them with their meanings and defaults."""
    from jsonargparse import ArgumentParser

    settings = ArgumentParser(exit_on_error=False, add_help=False)
    settings.add_argument("--config", action="config")
    settings.add_class_arguments(Settings)
    return settings


def load(config: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a YAML file, then overridden by `--section.setting VALUE`, in any order on the command line.

    `config` is a file, or the name of one that is shipped (`debug`). Raises UserError for a file that is missing or no
    YAML, for an unknown setting (with the nearest one there is), and for a value of the wrong type.
    """
    path = find(config)
    _refuse_unknown(_dotted(_read(path)), str(path))
    overrides = [part for item in overrides for part in _split(item)]
    _refuse_unknown([item.removeprefix("--") for item in overrides if item.startswith("--")], "the command line")
    reader = parser()
    try:
        parsed = reader.parse_args(["--config", str(path), *overrides])
    except Exception as error:  # jsonargparse raises ArgumentError, and some of pyyaml's own
        raise UserError(_in_one_line(error, path)) from error
    values = reader.instantiate_classes(parsed)
    return Settings(**{item.name: getattr(values, item.name) for item in fields(Settings)})


def find(config: Path | str) -> Path:
    """The YAML file of this path, or of this name among those shipped. Raises UserError where there is neither."""
    path = Path(config)
    if path.is_file():
        return path
    known = {file.stem: file for file in sorted(shipped().glob("*.yaml"))}
    if path.name == str(config) and path.stem in known:
        return known[path.stem]
    raise UserError(f"--config {config}: no such file; write one, or name one that is shipped: {', '.join(known)}")


def shipped() -> Path:
    """The folder of the configs that come with the package: inside it when installed, beside it in a clone."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path}: not YAML ({' '.join(str(error).split())}); mend that line") from error
    if not isinstance(content, dict):
        raise UserError(f"config {path}: holds {type(content).__name__}, not settings; write lines like \"seed: 0\"")
    return content


def _dotted(content: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in content.items():
        found += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def _split(item: str) -> list[str]:
    return item.split("=", 1) if item.startswith("--") and "=" in item else [item]


def _refuse_unknown(given: Sequence[str], where: str) -> None:
    known = names()
    sections = {name.split(".")[0] for name in known if "." in name}
    for name in given:
        if name in known:
            continue
        if name in sections:
            raise UserError(f"setting {name}, in {where}: is a section; set one of {', '.join(_of_section(name))}")
        nearest = difflib.get_close_matches(name, known, 1, 0.5) or [n for n in known if n.endswith(f".{name}")] or known[:1]
        raise UserError(f"setting {name}, in {where}: unknown; did you mean {nearest[0]}?")


def _of_section(section: str) -> list[str]:
    return [name for name in names() if name.startswith(f"{section}.")]


def _in_one_line(error: Exception, path: Path) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = lines[0].removeprefix("Parser key ").strip('":')
    what = " ".join(lines[1:]) or lines[0]
    return f"setting {key}, in {path} or on the command line: {what}"


def dump(settings: Settings) -> str:
    """YAML that `load` reads back equal."""
    plain = {key: _plain(value) for key, value in asdict(settings).items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def difference(before: Settings, after: Settings) -> list[tuple[str, Any, Any]]:
    """(dotted name, before, after) of every setting that differs."""
    pairs = ((name, _value(before, name), _value(after, name)) for name in names())
    return [(name, old, new) for name, old, new in pairs if old != new]


def _value(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def check(settings: Settings) -> None:
    """Refuse settings that do not fit together, with values that would. Needs no data and no network."""
    data, model, train = settings.data, settings.model, settings.train
    stride = 2 ** (len(model.channels) - 1)
    for name in ("train.steps", "train.ranks", "train.batch", "train.micro_batch", "train.log_every", "loader.readers", "loader.ahead"):
        if _value(settings, name) < 1:
            raise UserError(f"{name} {_value(settings, name)}: must be at least 1")
    if bad := [n for n in data.patch_zyx if n < 1 or n % stride]:
        raise UserError(
            f"data.patch_zyx {list(data.patch_zyx)}: {bad[0]} is not divisible by {stride}, the total stride of "
            f"{len(model.channels)} levels (model.channels); {max(stride, bad[0] // stride * stride)} would be"
        )
    if train.batch % train.ranks:
        up = -(-train.batch // train.ranks) * train.ranks
        raise UserError(f"train.batch {train.batch}: not divisible by train.ranks {train.ranks}; {up} would be")
    for name, value in (("data.val_fraction", data.val_fraction), ("data.foreground_fraction", data.foreground_fraction)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value}: must lie between 0 and 1")
    if not 0 <= settings.validation.overlap < 1:
        raise UserError(f"validation.overlap {settings.validation.overlap}: must be at least 0 and below 1")
    if unknown := [name for name in model.structures if name not in PANTS]:
        nearest = difflib.get_close_matches(unknown[0], PANTS, 1, 0) or ["liver"]
        raise UserError(f"model.structures: no structure {unknown[0]!r}; did you mean {nearest[0]}?")
    if not model.structures or len(set(model.structures)) != len(model.structures):
        raise UserError("model.structures: name at least one structure, and none twice")
    if data.spacing_mm_zyx is not None:
        raise UserError("data.spacing_mm_zyx: only null, each case's own spacing, can be trained at so far; leave it out")
