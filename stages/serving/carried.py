"""The parts of this program that a registered model carries along: what `predictor.py` imports, and no more.

They travel as a package of their own name, which has a digest of them in it. So they stand in nobody's way where
this program is installed too, and models of several versions of it can be loaded into one process.
"""

from __future__ import annotations

import ast
import hashlib
import re
from importlib import import_module
from pathlib import Path

ROOT = "stages.serving.predictor"
PACKAGES = ("stages", "cluster")
"""Those whose modules are carried along; everything else is a requirement."""
NEEDED = ("torch", "numpy", "pillow", "safetensors", "pydantic")
"""What the carried modules import, as the package index calls it."""

_IMPORT = re.compile(rf"^(\s*)from ({'|'.join(PACKAGES)})(?=\.)", re.MULTILINE)


def carry(folder: Path) -> str:
    """Write the package into `folder`; returns its name."""
    sources = {module: _path(module).read_text(encoding="utf-8") for module in sorted(modules())}
    digest = hashlib.sha256("".join(f"{module}\n{text}" for module, text in sources.items()).encode())
    name = f"patchline_model_{digest.hexdigest()[:12]}"
    for module, text in sources.items():
        path = (folder / name / module.replace(".", "/")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_IMPORT.sub(rf"\1from {name}.\2", text), encoding="utf-8")
    for place in [folder / name, *(path for path in (folder / name).rglob("*") if path.is_dir())]:
        (place / "__init__.py").touch()
    return name


def modules() -> set[str]:
    """Names of the modules that `predictor.py` needs, itself among them. Imports none of them."""
    found: set[str] = set()
    waiting = [ROOT]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imported(ast.parse(_path(module).read_text(encoding="utf-8")))
    return found


def _imported(tree: ast.AST) -> list[str]:
    """Modules of ours that a source imports, wherever it does; not those that only checkers of types look at."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return []
    if isinstance(tree, ast.ImportFrom) and (tree.module or "").partition(".")[0] in PACKAGES:
        return [str(tree.module)]
    return [module for child in ast.iter_child_nodes(tree) for module in _imported(child)]


def _path(module: str) -> Path:
    package, _, rest = module.partition(".")
    return (Path(import_module(package).__path__[0]) / rest.replace(".", "/")).with_suffix(".py")
