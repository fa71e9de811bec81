"""The parser of a command line: refuses what it does not know, with the nearest that it does, and takes every setting."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any, NoReturn

from pants_dist.errors import UserError


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


def add_settings(verb: Parser, names: Sequence[str] | None = None) -> None:
    """An option for each of these settings (default: for every one)."""
    from pants_dist.config import as_yaml, catalog, expected

    group = verb.add_argument_group("settings")
    for setting in map(catalog().__getitem__, names or catalog()):
        default = "must be set" if setting.default is MISSING else f"default {as_yaml(setting.default)}"
        text = f"{setting.meaning} ({expected(setting.hint)}; {default})".replace("%", "%%")
        group.add_argument(f"--{setting.name}", metavar="VALUE", default=argparse.SUPPRESS, help=text)
        verb.options.append(f"--{setting.name}")
