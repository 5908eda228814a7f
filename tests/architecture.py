"""The rooms of the house and the doors between them, as rules over the source.

Sources are parsed by ast and never imported: a rule sees every import of a file, those
inside functions and those for type checkers too. Each rule takes the parsed modules by
name and returns one sentence per fault. A new room is registered in `GROUPS`.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import graphlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]

# Imports go one way: a group may import itself and those above it. A package stands
# for all modules in it that no other line names, so a new family, layer, study or
# metric needs no line here; a new room does.
GROUPS = {
    "pure": (
        "cellgan",
        "cellgan.composition.eligible",
        "cellgan.composition.plan",
        "cellgan.composition.study",
        "cellgan.config",
        "cellgan.data.manifest",
        "cellgan.errors",
        "cellgan.experiment",
        "cellgan.files",
        "cellgan.seeds",
        "cellgan.start",
    ),
    "data": ("cellgan.data",),
    "parts": ("cellgan.layers", "cellgan.optimizers", "cellgan.sampling"),
    "families": ("cellgan.models",),
    "running": (
        "cellgan.composition",
        "cellgan.estimate",
        "cellgan.evaluation",
        "cellgan.generation",
        "cellgan.queue",
        "cellgan.training",
        "cellgan.weight_import",
    ),
    "studies": ("cellgan.studies", "cellgan.studies.checks"),
    "preprocessing": ("preprocessing",),
    "actions": ("cellgan.actions",),
    "command line": ("cellgan.cli", "main"),
}
CONFIGURATION = r"cellgan\.models\.\w+\.config"
ROOMS = tuple(room for rooms in GROUPS.values() for room in rooms)

# What these rooms may import of ours, on top of the direction.
ONLY_IMPORTS = {
    "preprocessing": (
        *GROUPS["pure"],
        "cellgan.data.dispersion",
        "cellgan.data.records",
        "cellgan.data.shards",
        "preprocessing",
    ),
    "cellgan.evaluation": (
        *GROUPS["pure"],
        "cellgan.data.dispersion",
        "cellgan.evaluation",
    ),
    "cellgan.training": (
        *(GROUPS["pure"] + GROUPS["data"] + GROUPS["parts"] + GROUPS["running"]),
        "cellgan.models.base",
    ),
}
ONLY_IMPORTED_BY = {"preprocessing": ("cellgan.actions", "preprocessing")}
# What every study may import of their room; no study knows another.
STUDIES = "cellgan.studies"
SHARED_BY_STUDIES = tuple(f"{STUDIES}.{name}" for name in ("checks", "figures", "kit"))
# The one door against the direction: `cellgan.load` is the package's public face.
EXCEPTIONS = {("cellgan", "cellgan.generation.trained_model")}

# Importing a light room loads none of the heavy libraries, nor another room that does.
LIGHT = (
    *GROUPS["pure"],
    *("cellgan.studies.checks", "cellgan.queue", "cellgan.actions"),
    *("cellgan.cli", "main"),
)
TENSORFLOW = frozenset({"keras", "tensorboard", "tensorflow"})
# TensorBoard's messages load no TensorFlow (a test asks in a process of its own).
WITHOUT_TENSORFLOW = TENSORFLOW - {"tensorboard"}
HEAVY = TENSORFLOW | {
    *("anndata", "igraph", "matplotlib", "mudata", "pandas", "scanpy", "sklearn"),
    *("torch", "umap", "zarr"),
}

# Modules in the longest chain of imports.
DEEPEST = 9

DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# Names that say the same of whatever they are of.
SHARED_NAMES = frozenset({"describe", "fill"})
# Keras calls layers and asks for their configuration; PyTorch's unpickler, Lightning.
CALLED_BY_LIBRARIES = frozenset({"call", "get_config", "find_class"})

Modules = Mapping[str, ast.Module]


@dataclasses.dataclass(frozen=True)
class Import:
    """One import: `target` is the module, `names` what is taken out of it."""

    target: str
    names: tuple[str, ...]
    line: int
    when: Literal["load", "call", "types"]


def read_house(root: Path = ROOT) -> dict[str, ast.Module]:
    files = [root / "main.py"]
    for package in ("cellgan", "preprocessing"):
        files += sorted((root / package).rglob("*.py"))
    return {module_name(file.relative_to(root)): parse(file) for file in files}


def module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def house(**sources: str) -> dict[str, ast.Module]:
    """Parse a small house; ``cellgan__config="..."`` is the module cellgan.config."""
    return {name.replace("__", "."): ast.parse(text) for name, text in sources.items()}


def imports(name: str, modules: Modules) -> list[Import]:
    return list(_imports_in(modules[name], name, modules, "load"))


def _imports_in(
    node: ast.AST, module: str, modules: Modules, when: Literal["load", "call", "types"]
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inner = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = "call"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inner = "types"
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), child.lineno, when)
        elif isinstance(child, ast.ImportFrom):
            source = _absolute(child, module, modules)
            for alias in child.names:
                target = f"{source}.{alias.name}"
                names = () if target in modules else (alias.name,)
                yield Import(source if names else target, names, child.lineno, when)
        else:
            yield from _imports_in(child, module, modules, inner)


def _absolute(node: ast.ImportFrom, module: str, modules: Modules) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{module}.") for other in modules)
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def room_of(module: str) -> str | None:
    """Return the room a module is in; the package `cellgan` is only its __init__.

    A family's configuration is in the room of configurations, wherever its file is.
    """
    if re.fullmatch(CONFIGURATION, module):
        return "cellgan.config"
    inside = [r for r in ROOMS if module == r or module.startswith(f"{r}.")]
    room = max(inside, key=len, default=None)
    return None if room == "cellgan" and module != "cellgan" else room


def group_of(module: str) -> str:
    return next(group for group, rooms in GROUPS.items() if room_of(module) in rooms)


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    return room_of(module) in rooms or module in rooms


def is_heavy(target: str, libraries: frozenset[str]) -> bool:
    return target.split(".")[0] in libraries


def unknown_rooms(modules: Modules) -> list[str]:
    return [
        f"{module}: no room of this name. Add it to GROUPS in {Path(__file__).name}, "
        f"in the group whose imports it needs: {', '.join(GROUPS)}."
        for module in modules
        if room_of(module) is None
    ]


def wrong_way_imports(modules: Modules) -> list[str]:
    order = list(GROUPS)
    return [
        f"{module}:{found.line} ({group_of(module)}) imports {found.target} "
        f"({group_of(found.target)}): imports go {' <- '.join(order)}."
        for module in modules
        for found in imports(module, modules)
        if room_of(module)
        and room_of(found.target)
        and order.index(group_of(found.target)) > order.index(group_of(module))
        and (module, found.target) not in EXCEPTIONS
    ]


def closed_doors(modules: Modules) -> list[str]:
    """Find imports that the direction allows and a room's own rule does not."""
    faults = []
    for module in modules:
        allowed = ONLY_IMPORTS.get(room_of(module) or "")
        for found in imports(module, modules):
            if found.target not in modules:
                continue
            where = f"{module}:{found.line} imports {found.target}"
            if allowed is not None and not is_in(found.target, allowed):
                faults.append(f"{where}: it may import {', '.join(allowed)}.")
            importers = ONLY_IMPORTED_BY.get(room_of(found.target) or "")
            if importers is not None and not is_in(module, importers):
                faults.append(f"{where}: only {', '.join(importers)} may.")
    return faults


def imports_between_studies(modules: Modules) -> list[str]:
    return [
        f"{module}:{found.line} imports {found.target}: no study imports another. What "
        f"both need belongs into {SHARED_BY_STUDIES[-1]}."
        for module in modules
        if room_of(module) == STUDIES
        for found in imports(module, modules)
        if room_of(found.target) == STUDIES and found.target not in SHARED_BY_STUDIES
    ]


def cycles(modules: Modules) -> list[str]:
    graph = {
        module: {
            found.target
            for found in imports(module, modules)
            if found.target in modules and (module, found.target) not in EXCEPTIONS
        }
        for module in modules
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"import cycle: {' <- '.join(error.args[1])}"]
    return []


def deep_imports(modules: Modules, most: int = DEEPEST) -> list[str]:
    """Find chains of modules that load each other that are too long."""
    loads = {
        module: {
            found.target
            for found in imports(module, modules)
            if found.when == "load" and found.target in modules
        }
        - {"cellgan"}
        for module in modules
    }
    longest: dict[str, list[str]] = {}
    for module in graphlib.TopologicalSorter(loads).static_order():
        below = [longest[target] for target in loads[module]]
        longest[module] = [module, *max(below, key=len, default=[])]
    return [
        f"{' <- '.join(reversed(chain))}: {len(chain)} modules load each other, at "
        f"most {most} may: import what is used in annotations for type checkers alone."
        for chain in longest.values()
        if len(chain) > most
    ]


def heavy_imports(modules: Modules) -> list[str]:
    return [
        f"importing {module} loads {library}, in {via}: import it inside the function "
        f"that needs it."
        for module in modules
        if room_of(module) in LIGHT
        for via, library in _loaded(module, modules, HEAVY)
    ]


def tensorflow_in_evaluation(modules: Modules) -> list[str]:
    return [
        f"{module}:{found.line} imports {found.target}: evaluation compares files and "
        f"needs no TensorFlow."
        for module in modules
        if room_of(module) == "cellgan.evaluation"
        for found in imports(module, modules)
        if is_heavy(found.target, WITHOUT_TENSORFLOW)
    ]


def _loaded(
    start: str, modules: Modules, libraries: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Yield (module, library) for all that importing `start` loads, parents too."""
    waiting, seen = [start], set()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in modules:
            continue
        seen.add(module)
        waiting += [module.rpartition(".")[0]]
        for found in imports(module, modules):
            if found.when != "load":
                continue
            if is_heavy(found.target, libraries):
                yield module, found.target
            waiting.append(found.target)


def prints(modules: Modules) -> list[str]:
    return [
        f"{module}:{node.lineno} prints: use logging.getLogger(__name__)."
        for module, tree in modules.items()
        if module != "cellgan.cli"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def private_names(modules: Modules) -> list[str]:
    """Find underscore names of another module, imported or reached as an attribute."""
    faults = []
    for module, tree in modules.items():
        ours = [i for i in imports(module, modules) if i.target in modules]
        for found in ours:
            taken = (*found.names, found.target.rpartition(".")[2])
            faults += [
                f"{module}:{found.line} imports {name} of {found.target}: private."
                for name in taken
                if is_private(name)
            ]
        nicknames = {found.target.rpartition(".")[2] for found in ours}
        faults += [
            f"{module}:{node.lineno} uses {ast.unparse(node)}: private."
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and ast.unparse(node.value).rpartition(".")[2] in nicknames
        ]
    return faults


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def mutable_state(modules: Modules) -> list[str]:
    containers = {"list", "dict", "set", "defaultdict", "Counter", "deque"}
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    faults = []
    for module, tree in modules.items():
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            value = node.value
            is_mutable = isinstance(value, displays) or (
                isinstance(value, ast.Call)
                and ast.unparse(value.func).rpartition(".")[2] in containers
            )
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            faults += [
                f"{module}:{node.lineno} keeps state in {ast.unparse(target)}: pass it "
                f"as an argument, or name it in capitals if it never changes."
                for target in targets
                if is_mutable and not is_constant(ast.unparse(target))
            ]
        faults += [
            f"{module}:{node.lineno} rebinds {', '.join(node.names)} of the module."
            for node in ast.walk(tree)
            if isinstance(node, ast.Global)
        ]
    return faults


def is_constant(name: str) -> bool:
    return name.isupper() or (name.startswith("__") and name.endswith("__"))


def repeated_public_names(modules: Modules) -> list[str]:
    """Find functions and classes of one name in several modules."""
    homes: dict[str, list[str]] = {}
    for module, tree in modules.items():
        for node in tree.body:
            if isinstance(node, DEFINITIONS) and node.name not in SHARED_NAMES:
                homes.setdefault(node.name, []).append(module)
    return [
        f"{name} is defined in {' and '.join(places)}: give each its own name."
        for name, places in homes.items()
        if not name.startswith("_") and len(places) > 1
    ]


def unused_public_names(modules: Modules, root: Path = ROOT) -> list[str]:
    """Find public definitions, methods too, that only tests mention, or nothing."""
    scripts = [*root.glob("benchmarks/*.py"), *root.glob("Misc/*.py")]
    mentions = collections.Counter[str]()
    for tree in (*modules.values(), *map(parse, scripts)):
        mentions.update(_mentions(tree))
    return [
        f"{module}:{node.lineno} {node.name}: nothing but tests uses it; delete it."
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, DEFINITIONS)
        and not node.name.startswith("_")
        and node.name not in CALLED_BY_LIBRARIES
        and not mentions[node.name]
    ]


def _mentions(tree: ast.Module) -> Iterator[str]:
    """Yield every name that is read, and the words of texts that are no docstrings."""
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from () if id(node) in texts else re.findall(r"\w+", node.value)


def model_types(modules: Modules) -> dict[str, tuple[str, str, str]]:
    """Read the literal table MODEL_TYPES: name -> (package, configuration, model)."""
    (table,) = (
        node.value
        for node in modules["cellgan.config.model_types"].body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and "MODEL_TYPES" in ast.unparse(node).partition("=")[0]
    )
    assert table is not None
    return dict(ast.literal_eval(table))


def incomplete_families(modules: Modules, root: Path = ROOT) -> list[str]:
    """Find model types without their class, tests, reference or example."""
    faults = []
    examples = _example_types(root / "Misc" / "parameters")
    for name, (package, *wanted) in model_types(modules).items():
        for file, needed in zip(("config", "model"), wanted, strict=True):
            tree = modules.get(f"{package}.{file}", ast.Module([], []))
            if needed not in (n.name for n in tree.body if isinstance(n, ast.ClassDef)):
                faults.append(f"{name}: no class {needed} in {package}.{file}.")
        family = package.rpartition(".")[2]
        tests = root / "tests" / "models" / family
        if not any(tests.glob("test_*.py")):
            faults.append(f"{name}: no tests in tests/models/{family}.")
        elif not any(map(_references_of, tests.glob("*.py"))):
            faults.append(f"{name}: its tests read no .npz of tests/reference.")
        if name not in examples:
            faults.append(f"{name}: no example file in Misc/parameters has this type.")
    return faults


def _references_of(file: Path) -> list[str]:
    """Return the stored reference files that a file of tests names."""
    stored = {path.name for path in (file.parents[2] / "reference").glob("*.npz")}
    constants = (
        node for node in ast.walk(parse(file)) if isinstance(node, ast.Constant)
    )
    return [node.value for node in constants if node.value in stored]


def _example_types(folder: Path) -> set[str]:
    documents = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return {
        experiment["model"]["type"]
        for document in documents
        for experiment in document["experiments"].values()
    }
