"""Imports point down one list, and a heavy dependency has one owner: read from the source, nothing is run."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = [  # a module imports only from those that stand after it
    "__main__", "cli", "data_verbs", "run_verbs", "submitting", "demo", "doctor", "pipeline", "status", "jobs", "preflight",
    "dashboard", "queue", "submit", "site", "info", "spread", "freeze", "bench", "launch", "agent", "train", "uploads",
    "mirror", "callbacks", "gauges", "evaluate", "keptmasks", "systems", "predict", "predictions", "inference", "model",
    "devices", "memory", "losses", "transfer", "checkpoints", "ranks", "networks", "optimizers", "augment", "results",
    "checklist", "sections", "breakdown", "shortcuts", "bycenter", "protocol", "report", "scores", "tables", "phantom",
    "scanner", "anatomy", "shapes",
    "conversion", "loader", "nodes", "rollcall", "mortal", "cluster", "store", "opencase", "casefile", "decode", "native",
    "shard", "stage", "fetch", "geometry", "plan", "weights", "population", "cohort", "worst", "pictures", "curves",
    "figures", "comparisons", "subgroups", "gaps", "presets", "detection", "roc", "resampling", "stats", "maxprob", "metrics",
    "surface", "surfels", "progress", "tracking",
    "diagnosis", "heartbeat", "clocks", "splits", "duplicates", "cases", "parser", "config", "settings", "targets",
    "strides", "structures", "rows", "disk", "errors",
]  # fmt: skip
OWNERS = {
    "zarr": {"store"},
    "ray": {"cluster", "loader"},
    "lightning": {"model", "train", "callbacks"},
    "wandb": {"mirror"},
    "nibabel": {"conversion.nifti"},
    "dash": {f"dashboard.{name}" for name in ("cases", "curvestab", "input", "overview", "page", "runs", "server", "stores")},
}
CONVERSION_MAY_IMPORT = {"store", "opencase", "casefile", "shard", "cases", "structures", "cluster", "disk", "errors"}


def modules() -> dict[str, str]:
    """Module name -> source: `cli` for pants_dist/cli.py, `conversion.run` for conversion/run.py."""
    files = {path: path.relative_to(ROOT / "pants_dist") for path in (ROOT / "pants_dist").rglob("*.py")}
    files |= {path: path.relative_to(ROOT) for path in (ROOT / "conversion").rglob("*.py")}
    return {str(name.with_suffix("")).replace("/", "."): path.read_text() for path, name in files.items()}


def imports(source: str) -> Iterator[str]:
    """Every module that is imported when the source runs, wherever in it; not what only a type checker reads."""
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """This node and those below it, without the bodies of `if TYPE_CHECKING`."""
    yield node
    typing_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in node.orelse if isinstance(node, ast.If) and typing_only else ast.iter_child_nodes(node):
        yield from running(child)


def ours(imported: str, known: Iterable[str]) -> str | None:
    """The module of ours that an imported name is or lies in; None for others, and for names of the package itself."""
    name = imported.removeprefix("pants_dist.")
    if name == imported and not imported.startswith("conversion"):
        return None
    parents = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
    return next((parent for parent in parents if parent in known), None)


def rank(module: str) -> int:
    """Place in ORDER; a module of a package has its package's."""
    return ORDER.index(module if module in ORDER else module.partition(".")[0])


def faults(sources: dict[str, str]) -> list[str]:
    """What breaks the rules, one line an import."""
    found = []
    for module, source in sources.items():
        for imported in imports(source):
            owners = OWNERS.get(imported.partition(".")[0])
            if owners is not None and module not in owners:
                found.append(f"{module} imports {imported}, which belongs to {', '.join(sorted(owners))}")
            other = ours(imported, sources)
            if module.endswith("__init__") or other is None or other.endswith("__init__"):
                continue
            inside = module.partition(".")[0] == other.partition(".")[0]
            if rank(other) < rank(module) or (rank(other) == rank(module) and not inside):
                found.append(f"{module} imports {other}, which stands above it")
            if module.startswith("conversion.") and not inside and other not in CONVERSION_MAY_IMPORT:
                found.append(f"{module} imports {other}, which conversion does not know")
    return found


def test_imports_point_down_and_dependencies_have_one_owner() -> None:
    """No module imports one above it, zarr, ray, lightning, wandb and nibabel are imported by their owners alone."""
    assert faults(modules()) == []


def test_every_module_has_its_place() -> None:
    """A new module is entered in the list, so that somebody decides where it belongs."""
    nowhere = {name for name in modules() if not name.endswith("__init__") and name.partition(".")[0] not in ORDER}
    assert nowhere == set()


def test_no_drawers() -> None:
    """A file without a subject has no name."""
    drawers = {"utils", "util", "common", "base", "core", "helpers", "misc", "registry"}
    assert not [name for name in modules() if drawers & set(name.split("."))]


IMPORTED_AS = {"connected-components-3d": "cc3d", "PyYAML": "yaml", "scikit-learn": "sklearn", "Jinja2": "jinja2"}
NOT_IMPORTED = {"deflate"}  # conversion/gz.py calls the library that this package carries


def test_dependencies_are_exactly_what_is_imported() -> None:
    """pyproject.toml names every package that the code imports, and no other: `pip install .` alone is enough."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[^A-Za-z0-9_-]", requirement)[0] for requirement in project["dependencies"]} - NOT_IMPORTED
    imported = {name.partition(".")[0] for source in modules().values() for name in imports(source)}
    others = imported - sys.stdlib_module_names - {"pants_dist", "conversion"}
    assert {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared} == others


BAD = {
    "store": "import zarr\nimport numpy\nfrom pants_dist import __version__\nfrom pants_dist.errors import UserError",
    "errors": "",
    "cases": "def f():\n    from pants_dist.store import open_store",
    "metrics": "from pants_dist import store",
    "model": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zarr\nelse:\n    import ray.data",
    "loader": "import ray",
    "conversion.run": "from conversion.nifti import read\nimport pants_dist.errors\nfrom pants_dist.metrics import x",
    "conversion.nifti": "import nibabel as nib",
    "report": "from zarr.storage import ZipStore\nimport conversion.run",
    "__init__": "from pants_dist import cases",
}


def test_the_rules_find_what_breaks_them() -> None:
    """Imports that point up, also inside functions, second owners, and what conversion must not know are all found."""
    assert faults(BAD) == [
        "cases imports store, which stands above it",
        "metrics imports store, which stands above it",
        "model imports ray.data, which belongs to cluster, loader",
        "conversion.run imports metrics, which conversion does not know",
        "report imports zarr.storage.ZipStore, which belongs to store",
    ]
