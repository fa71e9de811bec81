"""What the README and docs/ tell people to type is there, and what is there is told."""

import re
from collections.abc import Iterator
from pathlib import Path

from pants_dist.cli import build_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_of(text: str) -> Iterator[str]:
    """Lines of code in a Markdown page: of fenced blocks, a line continued by a backslash as one, and code spans."""
    fenced = re.compile(r"^ *```.*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    for block in fenced.findall(text):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", fenced.sub("", text)))


def commands(text: str) -> Iterator[list[str]]:
    """The words after `pants-dist` of every command in the page, without comments and what is said beside it."""
    for line in code_of(text):
        for part in re.split(r"[|;&]| {3,}", line.partition(" #")[0]):
            if found := re.search(r"(?:^|[\s/(])pants-dist +(.+)", part):
                yield re.sub(r"[\[\]]|\.\.\.", " ", found[1]).split()


def mistakes(text: str) -> list[str]:
    """Verbs, options and targets of make in the page that do not exist."""
    parser, verbs = build_parser()
    every = {option for verb in (parser, *verbs.values()) for option in verb.options}
    found = []
    for verb, *words in filter(None, commands(text)):
        if verb not in verbs and verb not in parser.options:
            found.append(f"pants-dist {verb}")
            continue
        known = verbs[verb].options if verb in verbs else parser.options
        if verb == "submit":  # takes the options of what it submits, too, and any of sbatch's
            known = [*known, *verbs["convert"].options, *verbs["train"].options]
            words = [word for word in words if not word.startswith("--sbatch.")]
        options = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
        found += [f"pants-dist {verb} {option}" for option in options if option not in known]
    alone = [span for span in code_of(text) if re.fullmatch(r"--[a-z][\w.-]*( [A-Z/]+)?", span)]
    found += [span for span in alone if span.split()[0] not in every | {"--section.setting"}]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [target for line in code_of(text) for target in re.findall(r"(?:^|\s)make +([a-z][\w-]*)", line)]
    return found + [f"make {target}" for target in made if target not in targets]


def test_what_the_pages_tell_to_type_exists() -> None:
    """Every verb, option, setting and target of make in README.md and docs/ is one of ours."""
    assert {page.name: found for page in PAGES if (found := mistakes(page.read_text()))} == {}


def test_every_verb_is_told() -> None:
    """Each verb of the parser occurs in a command in README.md or docs/."""
    told = {words[0] for page in PAGES for words in commands(page.read_text()) if words}
    assert set(build_parser()[1]) - told == set()


PAGE = """Run `pants-dist frobnicate` or `make tea`, see `--limt N`; `pants-dist` alone is fine, so is `--limit N`.
```
$ pants-dist convert SRC STORE --slice 1/4 \\
    --wrkers 2 | tee log   # pants-dist nonsense
.venv/bin/pants-dist info STORE --json && pants-dist train --config FILE [--optm.lr VALUE] --train.steps=3
make test-long
```
"""


def test_the_reading_finds_mistakes() -> None:
    """A verb, an option, a setting and a target that do not exist are found, in spans and blocks; others pass."""
    expected = [
        "pants-dist convert --wrkers",
        "pants-dist train --optm.lr",
        "pants-dist frobnicate",
        "--limt N",
        "make tea",
    ]
    assert mistakes(PAGE) == expected
