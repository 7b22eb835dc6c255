"""How the project is built: who imports whom, and how long files and functions may be."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import ORDER, ROOT, SOURCES, installed_name

MOST_LINES = 500
MOST_LINES_OF_A_BODY = 60
PYTHON = [*SOURCES, ROOT / "setup.py", *sorted((ROOT / "integrations").rglob("*.py"))]
CUDA = sorted((ROOT / "csrc").iterdir())

ALONE = ("reference", "kernels", "cuda")
TOP_LEVEL = {"torch", "numpy", "PIL", "scsco_fast"}


def component(module: str) -> str:
    """The part of the project that a module belongs to: ops for scsco_fast.ops.backend."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; for `from scsco_fast import x` that is scsco_fast.x if it is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            for alias in node.names:
                part = node.module == "scsco_fast" and alias.name in ORDER
                yield f"{node.module}.{alias.name}" if part else str(node.module)


def at_top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import, `if TYPE_CHECKING` left out."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def bodies(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each function's name and the lines of its body: from its first statement after the docstring to its end."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def cuda_bodies(text: str) -> Iterator[tuple[str, int]]:
    """The same of C++: the lines in the braces that stand behind arguments, outside of other functions."""
    text = re.sub(r"//[^\n]*|\"(\\.|[^\"\n])*\"|'(\\.|[^'\n])'", "", text)  # comments and texts
    text = re.sub(r"^[ \t]*#(.*\\\n)*.*$", "", text, flags=re.MULTILINE)  # directives and macros
    depth, name, start = 0, "", 0
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "}":
            depth = max(depth - 1, 0)  # 0: of a namespace or a class
            if depth == 0 and name:
                yield name, len(text[start : brace.start()].strip().splitlines())
                name = ""
        elif depth:
            depth += 1
        elif opened := function_name(re.split(r"[;{}]", text[: brace.start()])[-1]):
            depth, name, start = 1, opened, brace.end()


def function_name(header: str) -> str:
    """The function that begins with `header`; nothing for a namespace, a class or a value."""
    header = re.sub(r"template\s*<[^()]*?>\s*(?=\w)", "", header).strip()
    header = re.sub(r"\b(__\w+__|alignas)\s*\(([^()]|\([^()]*\))*\)", "", header)
    if re.match(r"(struct|class|namespace|enum|union)\b", header):
        return ""
    found = re.search(r"(operator\W+?|operator \w+|[\w~]+)\s*\(", header)
    return found[1] if found else ""


@pytest.mark.parametrize("path", SOURCES, ids=installed_name)
def test_imports_go_down_only(path: Path) -> None:
    name = installed_name(path)
    own = component(name)
    assert own in ORDER, f"{name} has no place in ORDER yet"
    for target in imports_of(ast.parse(path.read_text())):
        if target.split(".")[0] != "scsco_fast" or component(target) == own or own == "scsco_fast" == target:
            continue
        assert own not in ALONE, f"{name} imports {target}, but {own}/ knows nothing of the project"
        assert ORDER.index(component(target)) < ORDER.index(own), f"{name} imports {target}, which stands above it"


@pytest.mark.parametrize("path", SOURCES, ids=installed_name)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    name = installed_name(path)
    allowed = TOP_LEVEL | ({"triton"} if component(name) == "kernels" else set())
    for statement in at_top_level(ast.parse(path.read_text())):
        for target in imports_of(statement):
            package = target.split(".")[0]
            assert package in allowed or package in sys.stdlib_module_names, f"{name} imports {target} at the top"


def test_bodies_are_counted() -> None:
    python = '''def f():
    """Text.

    More.
    """
    a = 1
    # why
    return a

def g():
    """Text."""
'''
    assert list(bodies(ast.parse(python))) == [("f", 3), ("g", 0)]
    cuda = """namespace scsco {
#define BRACE(x) { \\
  x
struct alignas(16) Pair { int a, b; };  // {
template <typename T, int N>
__global__ __launch_bounds__(size<T>(), 2) void kernel(const T* x, int (&y)[N]) {
  if (y[0]) { x = 0; }

  const char* text = "}";
}
class Values {
  Values& operator=(const Values& other) { return *this; }
  explicit Values(int a) : a_(a) {
    a_ = 2;
  }
};
}  // namespace scsco
"""
    assert list(cuda_bodies(cuda)) == [("kernel", 3), ("operator=", 1), ("Values", 1)]


@pytest.mark.parametrize("path", [*PYTHON, *CUDA], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", [*PYTHON, *CUDA], ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = bodies(ast.parse(text)) if path.suffix == ".py" else cuda_bodies(text)
    assert [(name, lines) for name, lines in found if lines > MOST_LINES_OF_A_BODY] == []
