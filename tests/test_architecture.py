"""Imports point one way, and chips are named only where they are implemented."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "glm_portable"

LAYERS = [
    {"errors", "host", "text_cuts"},
    {"modelslim", "options"},
    {"config", "shards", "hub", "pocket", "tasks"},
    {"ops", "tokenizer", "parallel"},
    {"kernels", "stored", "digest"},
    {"formats"},
    {"backends", "checkpoint"},
    {"model"},
    {"virtual"},
    {"engine"},
    {"serve"},
    {"engine_task"},
    {"glm", "evaluate", "convert"},
    {"verify"},
    {"bench", "terminal", "doctor", "tune", "processes"},
    {"engine_main"},
    {"commands", "serving", "engine_options"},
    {"cli"},
    {"__main__"},
]
"""From the lowest up: a module imports from its own layer's package or from lower layers."""

NOT_FROM_MODEL = {"backends"}  # the model is handed its backend, so that two run side by side
VENDOR = re.compile(r"\b(cuda|rocm|hip|ascend|npu|triton)\b", re.IGNORECASE)
MAY_NAME_VENDORS = {"ops.py", "cli.py", "engine_options.py"}  # detection, and help texts
THREAD = re.compile(r"[\w.-]+( PR)?#\d+")  # whose bug tracker a fault is known from
VENDOR_MODULES = {"backends", "kernels", "virtual"}


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path
    for linked in ("backends", "kernels"):
        for path in sorted((PACKAGE / linked).glob("*.py")):
            yield linked, path


def imported(path: Path) -> Iterator[str]:
    """The parts of glm_portable that a file imports, by their first name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "glm_portable" and rest:
                yield rest.split(".")[0]


def level(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


@pytest.mark.parametrize(
    "module, path", [pytest.param(m, p, id=str(p.relative_to(PACKAGE))) for m, p in sources()]
)
def test_imports_point_down(module: str, path: Path) -> None:
    if module == "__init__":
        return  # what the package offers its users
    for other in imported(path):
        assert other == module or level(other) < level(module), f"{path} imports {other}"
    if module == "model":
        assert not NOT_FROM_MODEL & set(imported(path))


def test_every_module_has_a_layer() -> None:
    assert {m for m, _ in sources()} - {"__init__"} <= set.union(*LAYERS)


def test_no_vendor_is_named_outside_its_backend() -> None:
    for module, path in sources():
        if module in VENDOR_MODULES or path.name in MAY_NAME_VENDORS:
            continue
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text(encoding="utf-8"))))
        named = VENDOR.search(THREAD.sub("", code))
        assert not named, f"{path} names {named}"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]  # every node with a list body takes one
                n for n in body
                if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
            ] or [ast.Pass()]  # fmt: skip
    return tree
