"""From words to a verb. Each verb calls one function of the library and ends with what to do next; what is heavy is
imported by the verb that needs it. What a user can mend is one line on stderr and exit code 2.
"""

import os
import sys
from collections.abc import Callable, Sequence

from pants_dist import __version__
from pants_dist.data_verbs import add_data_verbs
from pants_dist.errors import UserError
from pants_dist.parser import Given, Parser
from pants_dist.run_verbs import add_run_verbs
from pants_dist.submitting import add_cluster_verbs, complete, submit

BAD_INPUT, INTERRUPTED = 2, 130


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of everything, and that of each verb."""
    parser = Parser(prog="pants-dist", description="From CT datasets to a model and a report by center, on many nodes.")
    parser.add_argument("--version", action="version", version=f"pants-dist {__version__}")
    adder = parser.add_subparsers(metavar="VERB", title="verbs", parser_class=Parser, required=True)
    verbs: dict[str, Parser] = {}

    def add(run: Callable[[Given], int]) -> Parser:
        verb = adder.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        verb.set_defaults(verb=run)
        verbs[run.__name__] = verb
        return verb

    add_data_verbs(add)
    add_run_verbs(add)
    add_cluster_verbs(add)
    return parser, verbs


def run(words: Sequence[str]) -> int:
    """Parse and do; returns the exit code. Raises UserError."""
    from pants_dist.config import nearest

    parser, verbs = build_parser()
    if not words:
        parser.print_help()
        return 0
    if not words[0].startswith("-") and words[0] not in verbs:
        raise UserError(f"no verb {words[0]!r}{nearest(words[0], verbs)}")
    if words[0] != "submit":
        verbs.get(words[0], parser).refuse_unknown(words[1:] if words[0] in verbs else words)
    given, beyond = parser.parse_known_args(words)
    if given.verb is submit:
        complete(given, beyond, verbs)
    elif beyond:
        raise UserError(f'{words[0]}: {beyond[0]!r} is more than it takes; see "pants-dist {words[0]} --help"')
    return given.verb(given)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of `pants-dist`; returns the exit code."""
    try:
        return run(sys.argv[1:] if words is None else words)
    except UserError as error:
        return _says(f"pants-dist: {' '.join(str(error).split())}", BAD_INPUT)
    except KeyboardInterrupt:
        return _says("pants-dist: interrupted; the same command goes on where it stopped", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if not error.filename:
            raise
        return _says(f"pants-dist: {error.filename}: {error.strerror}; use a path that is there and open to you", BAD_INPUT)


def _says(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
