"""The import arrows of ARCHITECTURE.md: this test walks the imports and fails on one that runs back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "service"

# room -> the rooms that it may import, besides itself
FOUNDATION = {"types", "errors"}
ARROWS = {
    "errors": set(),
    "types": set(),
    "settings": FOUNDATION,
    "stages": FOUNDATION,
    "logs": FOUNDATION,
    "metrics": FOUNDATION,
    "imaging": FOUNDATION,
    "explain": FOUNDATION,
    "models": FOUNDATION,
    "weights": FOUNDATION | {"models"},
    "datasets": FOUNDATION,
    "store": FOUNDATION | {"models", "weights"},
    "training": FOUNDATION | {"datasets", "models", "explain", "store", "weights"},
    "engine": FOUNDATION | {"settings", "stages", "imaging", "explain", "store", "models"},
    "api": FOUNDATION | {"settings", "stages", "logs", "metrics", "engine", "web"},
    "client": {"errors", "api.schemas"},
    "load": FOUNDATION,
}
ARROWS["cli"] = set(ARROWS) | {"cli"}


def imports(path: Path) -> set[str]:
    """The modules of service that a file imports, without the "service." in front."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "service":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("service."):
            found.add((node.module or "").removeprefix("service."))
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            found |= {name.removeprefix("service.") for name in names if name.startswith("service.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        allowed = set()
    else:
        assert room in ARROWS, f"{room} is a new room: give it its arrows here and in ARCHITECTURE.md"
        allowed = ARROWS[room] | {room}
    for module in imports(path):
        prefixes = {".".join(module.split(".")[:n]) for n in (1, 2)}
        assert prefixes & allowed, f"{path.name} in {room} may not import service.{module}"
