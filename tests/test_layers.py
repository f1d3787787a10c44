"""The rules of the tree, read off the source: imports, layers, syntax, sizes, sentences."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = sorted([ROOT / "igllama.py", *(ROOT / "libloader").rglob("*.py")])
EVERYTHING = sorted({*RUNTIME, *(ROOT / "tests").glob("*.py"), *(ROOT / "scripts").rglob("*.py")})
# Which layers a layer may import; itself always. igllama.py composes and may import all.
MAY_IMPORT = {
    "errors": set(),
    "core": {"errors"},
    "digests": set(),
    "chat": {"errors", "core"},
    "grammar": {"errors", "core"},
    "protocol": {"errors", "core"},
    "web": {"errors", "core"},
    "abi": {"errors", "core", "digests"},
    "llama": {"errors", "core", "abi"},
    "engine": {"errors", "core", "digests", "abi", "llama"},
    "supervise": {"errors", "core", "digests", "abi", "llama", "engine"},
    # These two compose what the layers below do not know of each other.
    "constraint": {"errors", "core", "chat", "grammar", "protocol"},
    "answers": {"errors", "core", "chat", "protocol", "web"},
    "service": {"errors", "core", "options", "engine", "supervise", "web"},
    # What the child imports, every restart pays for.
    "engine_child": {"engine", "supervise"},
}
ONLY_IN = {
    "ctypes": {"abi", "llama", "supervise"},
    "socket": {"web", "igllama"},
    "socketserver": {"web", "igllama"},
    "http": {"web", "igllama"},
    "ssl": {"web", "igllama"},
}
# Names that are newer than Python 3.9, by module; `ast` checks the syntax, this the rest.
TOO_NEW = {
    "datetime": {"UTC"},
    "enum": {"StrEnum", "verify"},
    "itertools": {"pairwise", "batched"},
    "tomllib": {"*"},
    "typing": {"TypeAlias", "ParamSpec", "Self", "override", "assert_never", "Concatenate"},
    "types": {"NoneType", "EllipsisType"},
    "contextlib": {"aclosing", "chdir"},
    "inspect": {"get_annotations"},
    "bisect": set(),
    "math": {"cbrt", "exp2", "sumprod", "fma"},
    "hashlib": {"file_digest"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "libloader" and len(parts) > 1 else parts[0]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    """Every imported module as an absolute dotted name, `from a import b` also as a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def upward_imports(layer: str, tree: ast.AST) -> list[str]:
    allowed = MAY_IMPORT.get(layer, set(MAY_IMPORT)) | {layer}
    wrong = []
    for name, line in imports_of(tree):
        parts = name.split(".")
        if parts[0] == "libloader" and len(parts) > 1 and parts[1] in MAY_IMPORT:
            if parts[1] not in allowed:
                wrong.append(f"line {line}: {layer} imports {parts[1]}")
        elif parts[0] == "igllama":
            wrong.append(f"line {line}: {layer} imports igllama")
    return wrong


def standard_library() -> set[str]:
    """Names of the standard library's modules; Python 3.9 does not list them, its folder does."""
    names = getattr(sys, "stdlib_module_names", None)
    if names is None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = [*folder.iterdir(), *(folder / "lib-dynload").glob("*")]
        names = {path.name.split(".")[0] for path in files} | set(sys.builtin_module_names)
        names.add("msvcrt")  # of Windows alone
    return set(names)


def foreign_imports(tree: ast.AST) -> list[str]:
    known = standard_library() | {"libloader", "__future__"}
    return [
        f"line {line}: {name}" for name, line in imports_of(tree) if name.split(".")[0] not in known
    ]


def misplaced_imports(layer: str, tree: ast.AST) -> list[str]:
    heads = [(name.split(".")[0], line) for name, line in imports_of(tree)]
    return [
        f"line {line}: {head}" for head, line in heads if layer not in ONLY_IN.get(head, {layer})
    ]


def too_new_names(tree: ast.AST) -> list[str]:
    wrong = []
    for name, line in imports_of(tree):
        module, _, attribute = name.rpartition(".")
        if attribute in TOO_NEW.get(module, ()) or "*" in TOO_NEW.get(name, ()):
            wrong.append(f"line {line}: {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in TOO_NEW.get(node.value.id, ()):
                wrong.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            if called == "zip" and "strict" in keywords:
                wrong.append(f"line {node.lineno}: zip(strict=)")
            if called == "dataclass" and keywords & {"slots", "kw_only", "match_args"}:
                wrong.append(f"line {node.lineno}: dataclass({', '.join(sorted(keywords))})")
    return wrong


@pytest.mark.parametrize("path", RUNTIME, ids=name_of)
def test_the_program_imports_the_standard_library_and_itself_only(path):
    assert foreign_imports(tree_of(path)) == []


@pytest.mark.parametrize("path", RUNTIME, ids=name_of)
def test_layers_import_downwards_only(path):
    assert upward_imports(layer_of(path), tree_of(path)) == []


@pytest.mark.parametrize("path", RUNTIME, ids=name_of)
def test_ctypes_and_sockets_stay_where_they_belong(path):
    assert misplaced_imports(layer_of(path), tree_of(path)) == []


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_nothing_is_newer_than_python_3_9(path):
    assert too_new_names(tree_of(path)) == []


def test_there_is_no_import_cycle_between_modules():
    graph = {}
    for path in RUNTIME:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[module] = {name for name, _ in imports_of(loaded_part(tree_of(path)))}
    assert (
        find_cycle({module: known_targets(names, graph) for module, names in graph.items()}) is None
    )


def loaded_part(tree: ast.Module) -> ast.Module:
    """The module without its `if TYPE_CHECKING:` blocks, which are not imported at load time."""
    body = [
        n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))
    ]
    return ast.Module(body=body, type_ignores=[])


def known_targets(names: set[str], graph: dict[str, set[str]]) -> set[str]:
    """The modules that these imports load: a.b.c means a.b.c, or a.b if c is a name in it."""
    return {n if n in graph else n.rpartition(".")[0] for n in names} & set(graph)


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(edges.get(module, ())):
            found = visit(target, [*path, module])
            if found:
                return found
        done.add(module)
        return None

    return next((c for c in (visit(m, []) for m in sorted(edges)) if c), None)


# Each checker must see the defect that it is for.


def test_the_layer_checker_sees_an_upward_import():
    planted = ast.parse("from libloader.engine import engine\nimport libloader.web.server")
    assert len(upward_imports("llama", planted)) == 2


def test_the_import_checker_sees_a_foreign_package():
    assert foreign_imports(ast.parse("import os, numpy")) == ["line 1: numpy"]


def test_the_place_checker_sees_ctypes_in_the_engine():
    assert misplaced_imports("engine", ast.parse("from ctypes import c_int")) == ["line 1: ctypes"]


def test_the_version_checker_sees_newer_names():
    source = "from datetime import UTC\nimport enum\nenum.StrEnum\nzip(a, b, strict=True)\n"
    assert len(too_new_names(ast.parse(source))) == 3


def test_the_syntax_checker_refuses_a_match_statement():
    with pytest.raises(SyntaxError):
        ast.parse("match a:\n  case 1: pass\n", feature_version=(3, 9))


def test_the_cycle_checker_sees_a_cycle():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def test_the_top_level_holds_nothing_else():
    allowed = {"igllama.py", "libloader", "tests", "scripts", "setup.cfg", "README.md"}
    allowed |= {"pyproject.toml", "LICENSE", ".gitignore", ".ci"}
    ignored = {"build", "dist", "__pycache__", "shared"}
    present = {path.name for path in ROOT.iterdir() if not path.name.endswith(".egg-info")}
    hidden = {name for name in present if name.startswith(".")} - allowed
    assert present - ignored - hidden <= allowed


def test_the_engine_child_loads_nothing_that_few_need():
    program = "import sys; sys.path[:0] = ['.']; import libloader.engine_child; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", program]
    loaded = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    dear = {"ssl", "_hashlib", "email", "http", "decimal", "argparse", "asyncio", "multiprocessing"}
    assert "libloader.engine.engine" in loaded.split() and not dear & set(loaded.split())
