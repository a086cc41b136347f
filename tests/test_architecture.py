"""The order of the packages: who may import whom."""

import ast
import re
from pathlib import Path

import dsd_env

ROOT = Path(dsd_env.__file__).parent

# A room may import rooms with a lower number only. Modules at the top of the package that are named nowhere
# here (files, text, rng, ...) are the floor: they import each other and no room.
FLOOR = -1
ORDER = {
    "laws": 0,
    "report": 0,
    "latency": 1,
    "scenario": 2,
    "changes": 3,
    "acceptance": 3,
    "network": 3,
    "workload": 3,
    "control": 4,
    "sim": 5,
    "policy": 6,
    "schedulers": 7,
    "envs": 8,
    "serving": 8,
    "whole_runs": 9,
    "simulate": 10,
    "history": 11,
    "cli": 12,
    "__main__": 13,
}
# The workshop, and the testbed, which loads models with the recorder; nothing else imports them.
WORKSHOP = {"calibration", "testbed"}
# Arrows against the order, with their reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its head or inside a function; members of packages as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("dsd_env.")}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def runtime() -> list[Path]:
    return [path for path in ROOT.rglob("*.py") if room_of(path) not in WORKSHOP]


def test_every_room_is_known():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert folders - WORKSHOP <= set(ORDER)
    assert set(ORDER) <= folders | {path.stem for path in ROOT.glob("*.py")}


def test_no_runtime_module_imports_the_workshop():
    assert len(runtime()) > 80
    assert ROOT / "simulate.py" in runtime()
    assert not [str(path.relative_to(ROOT)) for path in runtime() if WORKSHOP & rooms(imports(path))]


def test_the_package_imports_neither_agents_nor_scripts():
    for path in ROOT.rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"agents", "scripts", "tests"}, path


def test_imports_follow_the_order():
    wrong, used = [], set()
    for path in runtime():
        room = room_of(path)
        if room == "__init__":
            continue  # The package's own face: it shows something of every room.
        for other in rooms(imports(path)) & set(ORDER) - {room}:
            if (room, other) in EXCEPTIONS:
                used.add((room, other))
            elif ORDER[other] >= ORDER.get(room, FLOOR):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not sorted(wrong)
    assert used == set(EXCEPTIONS), "an exception that nothing needs any more"


def test_the_page_lists_the_rooms_in_their_order():
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = page.partition("\ndsd_env/\n")[2].partition("\nbeside these")[0]
    heads = re.findall(r"^  (\S.*)$", listed, re.MULTILINE)
    rooms_ = [room for head in heads for room in re.findall(r"^\w+|(?<=/ )\w+(?=/)", head)]
    orders = [ORDER[room] for room in rooms_ if room in ORDER]
    assert orders == sorted(orders, reverse=True)
    assert set(ORDER) <= set(rooms_)


def test_the_page_names_only_files_and_functions_that_exist():
    """Whoever has only docs/architecture.md looks for these names."""
    checkout = ROOT.parent
    page = (checkout / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = [path.relative_to(checkout).as_posix() for path in checkout.glob("[a-z]*/**/*.py")]
    named = set(re.findall(r"[a-z_]+(?:/[a-z_0-9]+)*\.py", page))
    assert len(named) > 30
    assert not [name for name in sorted(named) if not any(f"/{file}".endswith(f"/{name}") for file in files)]
    source = "\n".join((checkout / file).read_text(encoding="utf-8") for file in files)
    functions = set(re.findall(r"`(?:[a-z_]+\.)?(_?[a-z]+(?:_[a-z]+)*)`", page))
    words = set(re.findall(r"\w+", source))
    assert not functions - words
