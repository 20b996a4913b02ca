"""Write the developer guide's map of modules from their docstrings: ``python docs/module_map.py``.

Folders and modules come in the order of the import contract in ``pyproject.toml``, so that each
knows only of those below it. A test compares the guide with the code.
"""

import ast
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "numpyro_rwpo"
GUIDE = ROOT / "docs" / "developer-guide.md"
BEGIN, END = "<!-- made by docs/module_map.py -->", "<!-- end of docs/module_map.py -->"


def first_line(path: Path) -> str:
    """The first line of a module's docstring, in Markdown."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise ValueError(f"{path} must have a docstring for the developer guide's map.")
    return docstring.splitlines()[0].replace("``", "`").replace("|", r"\|")


def layers(container: str) -> list[str]:
    """Names in the layers of the import contract of ``container``, from the top; may be empty."""
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if container in contract.get("containers", ()):
            return [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    return []


def members(folder: Path) -> list[Path]:
    """Modules and packages in a folder, in the order of the import contract, then by name."""
    found = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    found += [path.parent for path in folder.glob("*/__init__.py")]
    dotted = ".".join(folder.relative_to(ROOT).parts)
    order = {name: k for k, name in enumerate(layers(dotted))}
    return sorted(found, key=lambda path: (order.get(path.stem, len(order)), path.stem))


def rows(folder: Path, prefix: str = "") -> list[str]:
    """Table rows of a folder's modules, those of packages inside it included."""
    lines = []
    for path in members(folder):
        source = path / "__init__.py" if path.is_dir() else path
        lines.append(f"| `{prefix}{path.stem}` | {first_line(source)} |")
        if path.is_dir():
            lines += rows(path, f"{prefix}{path.stem}.")
    return lines


def module_map() -> str:
    """The map: a table of the folders, then a table for each of them."""
    parts = ["| Folder or module | Holds |\n| --- | --- |"]
    sections = []
    for path in members(PACKAGE):
        if path.stem == "_version":
            continue
        source = path / "__init__.py" if path.is_dir() else path
        parts[0] += f"\n| `{path.relative_to(PACKAGE)}` | {first_line(source)} |"
        if path.is_dir():
            table = "\n".join(["| Module | Holds |", "| --- | --- |", *rows(path)])
            sections.append(f"### Modules in `{path.stem}`\n\n{table}")
    return "\n\n".join([*parts, *sections])


def with_map(text: str) -> str:
    """The guide with the map between its markers."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{module_map()}\n\n{END}{after}"


if __name__ == "__main__":
    GUIDE.write_text(with_map(GUIDE.read_text()))
