"""The rooms of the package, in their order: each imports only from itself and from rooms above it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "metagenrl_pl"
ROOMS = (
    "common",
    "config",
    "agents",
    "environments",
    "objectives",
    "experience",
    "learning",
    "results",
    "evaluation",
    "training",
    "reporting",
    "launch",
    "integrations",
)


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports from this package, also inside of functions."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((node.lineno, name) for name in names if name.startswith("metagenrl_pl."))


def faults(package: Path) -> list[str]:
    """Every import against the order of the rooms, and every import of a private name of another module."""
    found = []
    for path in sorted(package.rglob("*.py")):
        own, *below = path.relative_to(package).parts
        for line, name in imports(path.read_text()):
            place = f"{path.relative_to(package)}, line {line}: {name}"
            if below and ROOMS.index(name.split(".")[1]) > ROOMS.index(own):
                found.append(f"{place} is in a later room than {own}")
            if any(part.startswith("_") for part in name.split(".")):
                found.append(f"{place} is private")
    return found


def test_every_folder_is_a_room_and_says_what_it_is_for() -> None:
    folders = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    assert set(folders) == set(ROOMS)
    assert all(ast.get_docstring(ast.parse(path.read_text())) for path in folders.values())


def test_rooms_import_only_from_rooms_above_them() -> None:
    assert faults(PACKAGE) == []


def test_an_import_against_the_order_is_found_with_file_and_line(tmp_path: Path) -> None:
    for room in ("agents", "launch"):
        (tmp_path / room).mkdir()
    (tmp_path / "agents" / "one.py").write_text("import math\n\nfrom metagenrl_pl.launch.resume import resume_config\n")
    (tmp_path / "launch" / "two.py").write_text("def f():\n    from metagenrl_pl.agents.one import _private\n")
    assert faults(tmp_path) == [
        "agents/one.py, line 3: metagenrl_pl.launch.resume.resume_config is in a later room than agents",
        "launch/two.py, line 2: metagenrl_pl.agents.one._private is private",
    ]


def third_party(module: str, seen: set[str]) -> set[str]:
    """Packages that a module of this package imports when it is imported, also through others. Adds to `seen`."""
    file = PACKAGE.joinpath(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if module in seen or not file.is_file():
        return set()
    seen.add(module)
    found = third_party(module.rpartition(".")[0], seen)
    nodes = ast.parse(file.read_text()).body
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            is_own = name.split(".")[0] == "metagenrl_pl"
            found |= third_party(name, seen) if is_own else {name.split(".")[0]} - sys.stdlib_module_names
    return found


def test_objectives_and_integrations_need_torch_numpy_and_safetensors_alone() -> None:
    core = {"torch", "numpy", "safetensors"}
    for module in ("objectives", "integrations", "learning.learner"):
        assert third_party(f"metagenrl_pl.{module}", seen := set()) <= core, sorted(seen)
    assert third_party("metagenrl_pl.launch.run", set()) > core
