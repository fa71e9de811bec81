"""What a cluster is like: written once a site, in YAML, so that nobody types a partition twice.

The first of these that is there: the file or the shipped name given as --cluster, ~/.config/pants-dist/cluster.yaml,
the defaults below. Shipped examples lie in configs/cluster/.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from pants_dist.config import as_type, expected, nearest, shipped
from pants_dist.errors import UserError

OWN_FILE = Path(".config", "pants-dist", "cluster.yaml")  # below the home folder


@dataclass(frozen=True, kw_only=True)
class Site:
    """Defaults of every job at this site. None: nothing is asked for."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None
    ask_gpus_by: Literal["gres", "gpus-per-node"] = "gres"  # the option of sbatch that this site takes
    sbatch: dict[str, str] = field(default_factory=dict)  # any other options, by their long names
    modules: tuple[str, ...] = ()  # loaded in this order
    setup: tuple[str, ...] = ()  # lines of shell that run before anything else, as they stand
    environment: Literal["venv", "tarball", "apptainer"] = "venv"
    environment_path: str | None = None  # folder of the venv, tarball of one, or image; None: the Python that submits
    apptainer_options: tuple[str, ...] = ("--nv",)
    scratch: str | None = None  # folder on the node's own disk; None: $TMPDIR, or /tmp
    ports: tuple[int, int] = (20000, 32000)  # that jobs may listen at
    interface: str | None = None  # of the network between nodes, like ib0; None: the one that SLURM uses
    quota_command: tuple[str, ...] = ()  # prints one's quota; none: lfs quota, mmlsquota or quota, whichever answers


def load_site(name: str | None, home: Path | None = None) -> Site:
    """The site named by --cluster, or this user's, or the defaults.

    Raises UserError for a file that is not there or not YAML, an entry that does not exist and a wrong type.
    """
    path = (home or Path.home()) / OWN_FILE
    if name is None and not path.is_file():
        return Site()
    if name is not None:
        path = _found(name)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cluster {path}: is not YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(given, dict):
        raise UserError(f'cluster {path}: must hold entries, each on a line of its own as "name: value"')
    return Site(**{key: _typed(path, key, value) for key, value in given.items()})


def _found(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if (found := shipped(f"cluster/{name}")) and Path(name).name == name:
        return found
    names = ", ".join(sorted(path.stem for path in _examples().glob("*.yaml")))
    raise UserError(f"--cluster {name}: no such file; give a YAML file, or one that is shipped: {names}")


def _examples() -> Path:
    example = shipped("cluster/workstation")
    assert example
    return example.parent


def _typed(path: Path, key: str, value: Any) -> Any:
    hints = get_type_hints(Site)
    if key not in hints:
        raise UserError(f"cluster {path}: no entry {key!r}{nearest(str(key), [entry.name for entry in fields(Site)])}")
    try:
        typed = as_type(hints[key], value)
    except ValueError:
        raise UserError(f"cluster {path}: {key} is {value!r}; it takes {expected(hints[key])}") from None
    if key == "ports" and not 1024 <= typed[0] < typed[1] - 100 < 65436:
        raise UserError(f"cluster {path}: ports is {value!r}; give first and last, above 1023, over 100 apart")
    return typed


def program(site: Site) -> list[str]:
    """The words that run pants-dist in this site's environment, as a shell would read them; `$...` is the script's."""
    path = site.environment_path
    if site.environment == "apptainer":
        return [*quoted(["apptainer", "exec", *site.apptainer_options, needed(site)]), "pants-dist"]
    if site.environment == "tarball":
        return ['"$unpacked/bin/python"', "-m", "pants_dist"]
    return [*quoted([f"{path}/bin/python" if path else sys.executable]), "-m", "pants_dist"]


def needed(site: Site) -> str:
    """Where the tarball or the image is. Raises UserError where the site's file does not say."""
    if site.environment_path is None:
        raise UserError(f"cluster: environment is {site.environment}, but environment_path is not set; name the file")
    return site.environment_path


def quoted(words: Sequence[str]) -> list[str]:
    """Each word as a shell reads it back unchanged."""
    return [shlex.quote(word) for word in words]
