"""How the command line reads words and ends a verb: options are refused by name, and every verb says what is next."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pants_dist.errors import UserError

if TYPE_CHECKING:
    from pants_dist.settings import Settings

Given = argparse.Namespace
MIRROR = "average over windows mirrored along z and y, where training mirrored; 2 or 4 times the work"


def ends(code: int, after: str, *paths: Path | str, to: Any = None) -> int:
    """Say what to do next; returns the exit code."""
    print("Next:", after, *(shlex.quote(str(path)) for path in paths), file=to, flush=True)
    return code


class Parser(argparse.ArgumentParser):
    """Refuses by name what it does not know, with the nearest that it does, and raises instead of exiting."""

    def __init__(self, **options: Any) -> None:
        self.options: list[str] = []
        super().__init__(**options, allow_abbrev=False)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        self.options += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **options)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raises UserError for the first word that looks like an option and is none."""
        from pants_dist.config import nearest

        for word in words:
            option = word.partition("=")[0]
            if re.match(r"--?[A-Za-z]", option) and option not in self.options:
                verb = self.prog.partition(" ")[2]
                raise UserError(f"{verb and verb + ': '}no option {option}{nearest(option, self.options)}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; see "{self.prog} --help"')


def add_convert(verb: Parser) -> None:
    """The words of `convert`."""
    verb.add_argument("sources", metavar="SRC", type=Path, nargs="+", help="folders of datasets")
    verb.add_argument("store", metavar="STORE", type=Path, help="folder of the store: new, or to go on with")
    verb.add_argument("--layout", default="auto", help="how SRC is laid out (default: found out)")
    verb.add_argument("--metadata", metavar="FILE", type=Path, help="the dataset's table, where it is not in SRC")
    verb.add_argument("--workers", metavar="N", type=int, help="processes (default: one a core)")
    verb.add_argument("--ray", metavar="ADDRESS", help="work on all nodes of this Ray cluster, such as auto")
    verb.add_argument("--slice", metavar="I/N", help="only every N-th case, from the I-th: for N jobs on one store")
    verb.add_argument("--limit", metavar="N", type=int, help="only the first N cases")
    verb.add_argument("--cases", metavar="LIST", help="only these: ids with commas, or a file with one a line")
    verb.add_argument("--dry-run", action="store_true", help="only say what would be done")


def add_train(verb: Parser) -> None:
    """The words of `train`: every setting is one."""
    verb.add_argument("--config", metavar="FILE", required=True, help="settings as YAML, or the name of a shipped file")
    verb.add_argument("--run-name", metavar="NAME", help="name of the run (default: that of FILE without its ending)")
    add_settings(verb)


def add_evaluate(verb: Parser) -> None:
    """The words of `evaluate`."""
    verb.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    verb.add_argument("--split", metavar="NAME", help="train, val_seen, held_out or test (default: the middle two)")
    where = "score masks of another system instead: DIR/CASE/segmentations/STRUCTURE.nii.gz, or without that folder"
    verb.add_argument("--predictions", metavar="DIR", type=Path, help=where)
    verb.add_argument("--mirror", action="store_true", help=MIRROR)
    verb.add_argument("--analysis", metavar="FILE", type=Path, help="analysis.yaml: the tolerances of surface Dice")
    verb.add_argument("--ranks", metavar="N", type=int, help="processes on this machine (default: one for each GPU, or one)")
    verb.add_argument("--slice", metavar="I/N", help="only every N-th case, from the I-th: for N nodes on one run")


def add_predict(verb: Parser) -> None:
    """The words of `predict`."""
    models = "run folders, or files in their checkpoints folders; of several, the logits are averaged"
    verb.add_argument("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+", help=models)
    verb.add_argument("image", metavar="IMAGE", type=Path, help="CT in HU as .nii.gz or .nii, in any orientation")
    verb.add_argument("out", metavar="OUT", type=Path, help="folder for segmentations/STRUCTURE.nii.gz")
    verb.add_argument("--mirror", action="store_true", help=MIRROR)
    verb.add_argument("--label-map", action="store_true", help="also write label_map.nii.gz, and label_map.json: its numbers")


def add_settings(verb: Parser, names: Sequence[str] | None = None) -> None:
    """An option for each of these settings (default: for every one)."""
    from pants_dist.config import as_yaml, catalog, expected

    group = verb.add_argument_group("settings")
    for setting in map(catalog().__getitem__, names or catalog()):
        default = "must be set" if setting.default is MISSING else f"default {as_yaml(setting.default)}"
        text = f"{setting.meaning} ({expected(setting.hint)}; {default})".replace("%", "%%")
        group.add_argument(f"--{setting.name}", metavar="VALUE", default=argparse.SUPPRESS, help=text)
        verb.options.append(f"--{setting.name}")


def settings_of(given: Given) -> "Settings":
    """The settings of a "train" or "split" command line: its file, then what was given by name, wherever that stood."""
    from pants_dist import config

    chosen = vars(given)
    settings = config.load(given.config, [f"--{name}={chosen[name]}" for name in config.catalog() if name in chosen])
    config.check(settings)
    return settings


def run_name_of(given: Given) -> str:
    """The run's name: as given, or that of the config without its ending."""
    name = given.run_name or Path(given.config).stem
    if Path(name).name != name or name.startswith((".", "-")):
        raise UserError(f"--run-name {name!r}: must be a plain name; the folder of all runs is --runs")
    return name
