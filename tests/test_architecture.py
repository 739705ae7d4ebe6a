"""The house of DESIGN.md, read from the source: what may import what, and how large things may be. Nothing is imported.

`LAYERS` is the whole table. A new module is placed there first; until then `test_the_house_stands` fails and says so.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "ai4s.jobq"

# From the ground up. A name is a module or a package of ai4s.jobq; imports go sideways or downward.
LAYERS = (
    "errors message printable fields ranges retry lifecycle config clock version parts buffers shell_result distribution log_lines",
    (
        "requests_made codec signing version3 wire spill layout transports merging ledger packing batches entry_notes "
        "outcome_notes letter_notes"
    ),
    (
        "portal recent client failures named_task payload options checkpointing running resource stored submission task waiting "
        "reruns call_records call_progress log_formats control sweeping logs handle gathering letters dead_letters old_letters "
        "background app workflow schedule declaration telemetry machine_files granted process_work sessions sigterm maps blobs "
        "overview shell doctor cost"
    ),
    "worker",
    "cli dashboard integrations inline inline_packs testing",
)
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 40

# Where alone something may stand: a top-level package, or an attribute of a module.
ONLY_IN = {
    "azure": f"{PACKAGE}.transports.azure",
    "azure.monitor": f"{PACKAGE}.telemetry",
    "opentelemetry": f"{PACKAGE}.telemetry",
    "prometheus_client": f"{PACKAGE}.telemetry",
}
ENVIRONMENT_READER = f"{PACKAGE}.config"
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


@dataclass(frozen=True)
class Import:
    """One imported module, or name of a module; `at_runtime` is False under `if TYPE_CHECKING:`."""

    target: str
    names: tuple[str, ...]
    line: int
    at_runtime: bool


@dataclass(frozen=True)
class Module:
    """One source file, by its dotted name."""

    name: str
    path: Path
    is_package: bool

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @property
    def layer(self) -> int | None:
        """Its storey; None for one that is not in the table. The package's own __init__ is the roof: it may name everything."""
        if self.name == PACKAGE:
            return len(LAYERS)
        room = self.name.removeprefix(PACKAGE + ".").split(".")[0]
        return next((number for number, rooms in enumerate(LAYERS) if room in rooms.split()), None)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import in the file, inside functions too."""
        type_only = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            for statement in node.body
            for inner in ast.walk(statement)
        }
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(alias.name, (), node.lineno, id(node) not in type_only) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = tuple(alias.name for alias in node.names)
                found.append(Import(self.absolute(node), names, node.lineno, id(node) not in type_only))
        return found

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a `from … import` names: `from ..errors` in ai4s.jobq.transports.base is ai4s.jobq.errors."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        package = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*package, *([node.module] if node.module else [])])


@dataclass(frozen=True)
class House:
    """All modules below one root folder."""

    root: Path

    @cached_property
    def modules(self) -> dict[str, Module]:
        found = {}
        for path in sorted((self.root / "ai4s").rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found[name] = Module(name, path, is_package)
        return found

    def imports(self) -> Iterator[tuple[Module, Import]]:
        """Every import of every module."""
        for module in self.modules.values():
            for imported in module.imports:
                yield module, imported

    def nodes(self) -> Iterator[tuple[Module, ast.AST]]:
        """Every node of every module's syntax tree."""
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                yield module, node

    def uses(self, module: Module, *, at_runtime_only: bool = False) -> Iterator[tuple[Module, int]]:
        """The modules of this house that a module imports, with the line; `from . import codec` names the module codec."""
        for imported in module.imports:
            if at_runtime_only and not imported.at_runtime:
                continue
            inner = [f"{imported.target}.{name}" for name in imported.names]
            submodules = [name for name in inner if name in self.modules]
            # A package's __init__ is meant only if something is taken from it that is not one of its modules.
            itself = [imported.target] if len(submodules) < len(inner) or not inner else []
            for name in (*submodules, *itself):
                if name in self.modules and name != module.name:
                    yield self.modules[name], imported.line


Rule = Callable[[House], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Register a check that yields one sentence for each breach."""
    RULES.append(check)
    return check


@rule
def namespace_package(house: House) -> Iterator[str]:
    """`ai4s` may be shared with other distributions."""
    if "ai4s" in house.modules:
        yield "ai4s/__init__.py must not exist: ai4s is a namespace package"


@rule
def every_module_has_a_storey(house: House) -> Iterator[str]:
    """Who adds a module decides where it stands."""
    for module in house.modules.values():
        if module.name != "ai4s" and module.layer is None:
            yield f"{module.name} is in no layer: place it in LAYERS in {Path(__file__).name}, and in DESIGN.md"


@rule
def imports_point_downward(house: House) -> Iterator[str]:
    """Imports for type checkers count as well: a type is knowledge, too."""
    for module in house.modules.values():
        for used, line in house.uses(module):
            if module.layer is not None and used.layer is not None and used.layer > module.layer:
                yield f"{module.name}:{line} imports {used.name} from above (layer {module.layer} uses {used.layer})"


@rule
def no_cycles(house: House) -> Iterator[str]:
    """Imports inside functions count: a cycle that is merely put off is one. Those for type checkers do not: two records of one
    layer may name each other's types, nothing runs, and nothing can be half-initialised by it.
    """
    finished: set[str] = set()

    def visit(module: Module, path: list[str]) -> Iterator[str]:
        if module.name in path:
            yield "cycle: " + " -> ".join([*path[path.index(module.name) :], module.name])
        elif module.name not in finished:
            for used, _ in house.uses(module, at_runtime_only=True):
                yield from visit(used, [*path, module.name])
            finished.add(module.name)

    for module in house.modules.values():
        yield from visit(module, [])


@rule
def the_ground_is_the_standard_library(house: House) -> Iterator[str]:
    """Layer 0 can be read, tested and reused without anything installed."""
    for module, imported in house.imports():
        known = imported.target.split(".")[0] in sys.stdlib_module_names or f"{imported.target}.".startswith(f"{PACKAGE}.")
        if module.layer == 0 and not known:
            yield f"{module.name}:{imported.line} imports {imported.target}; layer 0 has the standard library only"


@rule
def what_has_one_home(house: House) -> Iterator[str]:
    """A foreign package with a translator of its own is imported there and nowhere else."""
    for module, imported in house.imports():
        homes = [name for name in ONLY_IN if f"{imported.target}.".startswith(f"{name}.")]
        home = ONLY_IN[max(homes, key=len)] if homes else None
        if home and not f"{module.name}.".startswith(f"{home}."):
            yield f"{module.name}:{imported.line} imports {imported.target}, which only {home} may"


@rule
def one_reader_of_the_environment(house: House) -> Iterator[str]:
    """What a variable means is said in one place."""
    for module, node in house.nodes():
        if isinstance(node, ast.Attribute):
            reads = ast.unparse(node.value) == "os" and node.attr in ENVIRONMENT
        elif isinstance(node, ast.ImportFrom):
            reads = node.module == "os" and not ENVIRONMENT.isdisjoint(alias.name for alias in node.names)
        else:
            continue
        if reads and module.name != ENVIRONMENT_READER:
            yield f"{module.name}:{node.lineno} reads the environment, which only {ENVIRONMENT_READER} may"


@rule
def private_names_stay_home(house: House) -> Iterator[str]:
    """A leading underscore is a promise that nobody else depends on it."""
    for module, imported in house.imports():
        path = imported.target.split(".")
        private = [part for part in (*path, *imported.names) if part.startswith("_") and not part.endswith("__")]
        if path[0] == "ai4s" and private:
            yield f"{module.name}:{imported.line} imports the private {private[0]} of {imported.target}"


@rule
def files_are_short(house: House) -> Iterator[str]:
    """A file is read in one sitting."""
    for module in house.modules.values():
        lines = len(module.text.splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{module.name} has {lines} lines; at most {MAX_FILE_LINES}"


@rule
def functions_are_short(house: House) -> Iterator[str]:
    """Counted from `def` to the end, without the docstring: a contract may be as long as it must."""
    for module, node in house.nodes():
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
        if length > MAX_FUNCTION_LINES:
            yield f"{module.name}:{node.lineno} {node.name} has {length} lines; at most {MAX_FUNCTION_LINES}"


@rule
def modules_have_headers(house: House) -> Iterator[str]:
    """What lives here, what it keeps, what it must not know."""
    for module in house.modules.values():
        if not ast.get_docstring(module.tree):
            yield f"{module.name} has no docstring that says what lives there"


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function's docstring takes."""
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def breaches(house: House) -> list[str]:
    """Everything that is wrong with a house, by rule."""
    return [f"[{check.__name__}] {breach}" for check in RULES for breach in check(house)]


def test_the_house_stands() -> None:
    """Every rule holds for the package as it is."""
    house = House(REPOSITORY)
    assert house.modules, f"no sources below {REPOSITORY / 'ai4s'}"
    assert not breaches(house), "\n" + "\n".join(breaches(house))


# The rules themselves: small houses in which exactly one thing is wrong.

SOUND = {
    "__init__": "",
    "errors": "import inspect",
    "config": "import os\nhome = os.environ",
    "wire": "from .errors import JobQError\nimport msgpack",
    "transports/__init__": "from .base import Queue\ndef f():\n    from .azure import sdk",
    "transports/base": "from ..errors import JobQError",
    "transports/azure/__init__": "",
    "transports/azure/sdk": "from azure.core import x\nfrom ...errors import JobQError\nfrom .. import base",
    "app": "from . import wire, transports",
    "worker/runtime": "from ..app import App\nfrom ai4s.jobq import wire",
}


def build(root: Path, changes: dict[str, str]) -> House:
    """Write a house with `changes` to the sound one; each file gets a header unless it brings one."""
    for name, source in (SOUND | changes).items():
        path = root / "ai4s" / "jobq" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if source.startswith("#") else f'"""Header."""\n{source}\n')
    return House(root)


def test_a_sound_house_passes(tmp_path: Path) -> None:
    """The small house of these tests has no fault of its own."""
    assert breaches(build(tmp_path, {})) == []


BODY = "\n".join(f"    x{i} = {i}" for i in range(MAX_FUNCTION_LINES))


@pytest.mark.parametrize(
    ("broken", "changes", "says"),
    [
        ("namespace_package", {"../__init__": ""}, "ai4s/__init__.py must not exist"),
        ("every_module_has_a_storey", {"helpers": ""}, "ai4s.jobq.helpers is in no layer: place it in LAYERS"),
        ("every_module_has_a_storey", {"helpers/strings": ""}, "ai4s.jobq.helpers.strings is in no layer"),
        ("imports_point_downward", {"layout": "from .app import App"}, "ai4s.jobq.layout:2 imports ai4s.jobq.app"),
        ("imports_point_downward", {"layout": "from . import app"}, "ai4s.jobq.layout:2 imports ai4s.jobq.app"),
        ("imports_point_downward", {"layout": "import ai4s.jobq.app"}, "ai4s.jobq.layout:2 imports ai4s.jobq.app"),
        ("imports_point_downward", {"layout": "from . import App"}, "ai4s.jobq.layout:2 imports ai4s.jobq from above"),
        ("imports_point_downward", {"layout": "def f():\n    from .worker import runtime"}, "imports ai4s.jobq.worker.runtime"),
        ("imports_point_downward", {"layout": "if TYPE_CHECKING:\n    from .app import App"}, "imports ai4s.jobq.app"),
        ("imports_point_downward", {"transports/base": "from ..task import Task", "task": ""}, "transports.base:2"),
        ("no_cycles", {"codec": "from . import layout", "layout": "from . import codec"}, "codec -> ai4s.jobq.layout -> ai4s"),
        ("no_cycles", {"codec": "from .layout import x", "layout": "def f():\n    from .codec import y"}, "ai4s.jobq.layout ->"),
        ("no_cycles", {"transports/base": "from . import open_transport"}, "ai4s.jobq.transports -> ai4s.jobq.transports.base"),
        ("the_ground_is_the_standard_library", {"message": "import msgpack"}, "ai4s.jobq.message:2 imports msgpack"),
        ("the_ground_is_the_standard_library", {"message": "import ai4s.other"}, "ai4s.jobq.message:2 imports ai4s.other"),
        ("what_has_one_home", {"transports/local": "from azure.core import x"}, "ai4s.jobq.transports.local:2 imports azure.core"),
        ("what_has_one_home", {"transports/azured": "def f():\n    import azure"}, "ai4s.jobq.transports.azured:3 imports azure"),
        ("one_reader_of_the_environment", {"app": "import os\nx = os.getenv('X')"}, "ai4s.jobq.app:3 reads the environment"),
        ("one_reader_of_the_environment", {"app": "import os\nx = os.environ['X']"}, "ai4s.jobq.app:3 reads the environment"),
        ("one_reader_of_the_environment", {"app": "from os import environ as e"}, "ai4s.jobq.app:2 reads the environment"),
        ("private_names_stay_home", {"app": "from .wire import _seal"}, "ai4s.jobq.app:2 imports the private _seal"),
        ("private_names_stay_home", {"app": "from .transports._base import x"}, "imports the private _base"),
        ("files_are_short", {"app": "x = 1\n" * MAX_FILE_LINES}, "at most 399"),
        ("functions_are_short", {"app": f"def f():\n{BODY}"}, "ai4s.jobq.app:2 f has 41 lines"),
        ("functions_are_short", {"app": f"class A:\n  async def f(self):\n{BODY}"}, "ai4s.jobq.app:3 f has 41 lines"),
        ("modules_have_headers", {"app": "# no header"}, "ai4s.jobq.app has no docstring"),
    ],
)
def test_each_rule_finds_its_breach(tmp_path: Path, broken: str, changes: dict[str, str], says: str) -> None:
    """A house with one fault is found out, by the rule that is about it and by no other."""
    found = breaches(build(tmp_path, changes))
    assert found, "nothing was found"
    assert all(breach.startswith(f"[{broken}]") for breach in found)
    assert any(says in breach for breach in found), found


@pytest.mark.parametrize(
    "changes",
    [
        {
            "codec": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .layout import x",
            "layout": "from .codec import y",
        },
        {"app": f'def f():\n    """{chr(10) * 50}"""\n    return 1'},
        {"__init__": "from .app import App"},
        {"app": "environ = {}\nx = environ.get('X')\nfrom .wire import __version__"},
    ],
    ids=["cycle-of-types", "long-docstring", "the-roof-names-all", "a-name-like-environ"],
)
def test_what_is_allowed_passes(tmp_path: Path, changes: dict[str, str]) -> None:
    """The rules forbid no more than they say."""
    assert breaches(build(tmp_path, changes)) == []
