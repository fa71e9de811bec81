"""Settings from YAML, then overridden by name (`--optim.lr 1e-3`), and back. What there is to set: settings.py."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from pants_dist.errors import UserError
from pants_dist.settings import (
    Augment,
    Data,
    Loader,
    Model,
    Optim,
    Setting,
    Settings,
    Tracking,
    Train,
    Validation,
    catalog,
    check,
    flat,
)

__all__ = [
    "Augment", "Data", "Loader", "Model", "Optim", "Settings", "Tracking", "Train", "Validation",
    "as_type", "as_yaml", "catalog", "check", "difference", "dump", "expected", "load", "nearest", "shipped",
]  # fmt: skip


def shipped(name: str) -> Path | None:
    """A config that comes with the program, by its file name or stem; None if there is none of that name."""
    path = _configs() / name
    return next((found for found in (path, path.with_suffix(".yaml")) if found.is_file()), None)


def _configs() -> Path:
    """configs/ lies inside the package once installed, and beside it in a clone."""
    here = Path(__file__).parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


class Given(NamedTuple):
    """A value as it was written, and where."""

    value: Any
    where: str


def load(config: Path | str | None, overrides: Sequence[str]) -> Settings:
    """Settings from a YAML file (or the name of a shipped one, or None: the defaults), then `--section.setting VALUE` in
    the order given. A file that says `base: OTHER` begins with the settings of that file.

    Raises UserError for a file that cannot be read, an unknown name (with the nearest valid one) and a wrong type.
    """
    given = dict(_from_file(_found(config)) if config else ()) | dict(_from_command_line(overrides))
    values = {name: _typed(catalog()[name], got) for name, got in given.items()}
    for setting in catalog().values():
        if setting.default is MISSING and setting.name not in values:
            raise UserError(f"config {config}: {setting.name} is not set; add --{setting.name} ({setting.meaning})")
    return _built(Settings, "", values)


def _found(config: Path | str) -> Path:
    if Path(config).is_file():
        return Path(config)
    found = shipped(str(config)) if Path(config).name == str(config) else None
    if found is None:
        names = ", ".join(sorted(path.name for path in _configs().glob("*.yaml")))
        raise UserError(f"config {config}: no such file; give a YAML file, or one that is shipped: {names}")
    return found


class _Yaml(yaml.SafeLoader):
    """YAML in which `off` is a word: only true and false are booleans."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))


def _from_file(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[str, Given]]:
    """Name and value of each setting in the file, after those of its base, which they replace. `above` have it for base.

    Raises UserError, naming file and line, for an unknown one, and for a file that is its own base.
    """
    if path in above:
        raise UserError(f"config {path}: is its own base; take the line out")
    try:
        loader = _Yaml(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if base := _base_of(root):
            beside = path.with_name(base)
            yield from _from_file(beside if beside.is_file() else _found(base), (*above, path))
        yield from _flat(loader, root, "", path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path}: is not YAML ({' '.join(str(error).split())}); mend it") from error


def _base_of(root: Any) -> str | None:
    """The value of the line `base`, which is then taken out."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = [pair for pair in pairs if pair[0].value == "base"]
    for pair in found:
        pairs.remove(pair)
    return str(found[0][1].value) if found else None


def _flat(loader: _Yaml, node: Any, prefix: str, path: Path) -> Iterator[tuple[str, Given]]:
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        what = prefix.rstrip(".") or "the file"
        raise UserError(f'{where}: {what} must hold settings, each on a line of its own as "name: value"')
    seen: set[str] = set()
    for key, value in node.value:
        name, where = f"{prefix}{key.value}", f"{path}, line {key.start_mark.line + 1}"
        if name in seen:
            raise UserError(f"{where}: {name} stands there twice; keep one")
        seen.add(name)
        if name in _sections():
            yield from _flat(loader, value, f"{name}.", path)
        else:
            yield _known(name, where), Given(loader.construct_object(value, deep=True), where)


def _sections() -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in catalog() if "." in name))


def _from_command_line(overrides: Sequence[str]) -> Iterator[tuple[str, Given]]:
    words = iter(overrides)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            raise UserError(f"{word}: not expected here; settings are given as --section.setting VALUE")
        name = _known(option[2:], f"option {option}")
        if not equals and (value := next(words, "--")).startswith("--"):
            raise UserError(f"option {option}: the value is missing; it takes {expected(catalog()[name].hint)}")
        yield name, Given(value, f"option {option}")


def _known(name: str, where: str) -> str:
    if name not in catalog():
        raise UserError(f"{where}: no setting {name!r}{nearest(name, [*catalog(), *_sections()])}")
    return name


def nearest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean ...?' with the valid name most like this one, or a list of them where none is like it."""
    bare = {other.lstrip("-"): other for other in valid}
    section, _, leaf = name.lstrip("-").rpartition(".")
    if same := [other for other in bare if leaf and other.rpartition(".")[2] == leaf]:
        return f"; did you mean {bare[same[0]]!r}?"
    beside = [other for other in bare if section and other.startswith(f"{section}.")]
    pool = {other.removeprefix(f"{section}."): other for other in beside or bare}
    if close := difflib.get_close_matches(leaf if beside else name.lstrip("-"), pool, 1, 0.5):
        return f"; did you mean {bare[pool[close[0]]]!r}?"
    return f"; there are {', '.join(bare[other] for other in pool.values())}"


def _typed(setting: Setting, given: Given) -> Any:
    try:
        return as_type(setting.hint, given.value)
    except ValueError:
        what = expected(setting.hint)
        raise UserError(f"{given.where}: {setting.name} is {given.value!r}; it takes {what}") from None


def as_type(hint: Any, value: Any) -> Any:
    """The value as this type; "3" is a number and "[1, 2]" a list where one is wanted. Raises ValueError."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    if value is None and NoneType not in get_args(hint):
        raise ValueError("null")
    try:
        return parser.parse_object({"value": value}).value
    except (ArgumentError, TypeError) as error:
        raise ValueError(str(error)) from None


def expected(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if NoneType in get_args(hint):
        return f"{expected(next(kind for kind in get_args(hint) if kind is not NoneType))}, or null"
    if hint == dict[str, str]:
        return "names with text, like {reservation: ct}"
    if get_origin(hint) is dict:
        nested = get_origin(get_args(hint)[1]) is dict
        return "names with numbers, like " + ("{phase: {Arterial: 0.5}}" if nested else "{pancreatic_lesion: 3}")
    if get_origin(hint) is tuple:
        kind, *others = get_args(hint)
        example = {int: "[32, 64, 64]", float: "[2.0, 1.0, 1.0]" if len(others) == 2 else "[0.7, 1.4]"}.get(kind, "[one, two]")
        count = "a list of" if Ellipsis in others else len(others) + 1
        return f"{count} {_PLURAL[kind]}, like {example}"
    return _SINGULAR[hint]


_SINGULAR = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "names"}


def _built(section: type, prefix: str, values: dict[str, Any]) -> Any:
    hints = get_type_hints(section)
    chosen = {}
    for entry in fields(section):
        if is_dataclass(hints[entry.name]):
            chosen[entry.name] = _built(hints[entry.name], f"{prefix}{entry.name}.", values)
        elif prefix + entry.name in values:
            chosen[entry.name] = values[prefix + entry.name]
    return section(**chosen)


def as_yaml(value: Any) -> str:
    """A setting's value as it is written in YAML, on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def dump(settings: Settings) -> str:
    """YAML that `load` reads back as equal settings."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in flat(settings).items()}
    nested: dict[str, Any] = {}
    for name, value in plain.items():
        section, _, leaf = name.lstrip("-").rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return yaml.safe_dump(nested, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def difference(before: Settings, after: Settings) -> list[tuple[str, Any, Any]]:
    """(name, before, after) of each setting that differs."""
    old, new = flat(before), flat(after)
    return [(name, old[name], new[name]) for name in catalog() if old[name] != new[name]]
