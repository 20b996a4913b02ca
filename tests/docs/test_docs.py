"""The documentation's own programs, and that its pages miss nothing that they promise."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_rwpo
from numpyro_rwpo import flow, plots

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("other.html", None),
        ("other.html#here", None),
        ("#top", None),
        ("https://example.org/missing", None),
        ("missing.html", "missing.html does not exist"),
        ("other.html#there", "other.html#there has no such anchor"),
        ("#bottom", "#bottom has no such anchor"),
    ],
)
def test_link_checker(tmp_path: Path, link: str, complaint: str | None) -> None:
    (tmp_path / "index.html").write_text(f'<h1 id="top">Title</h1><a href="{link}">link</a>')
    (tmp_path / "other.html").write_text('<p id="here">Text</p>')
    broken, number = runpy.run_path(str(DOCS / "check_links.py"))["broken_links"](tmp_path)
    assert broken == ([] if complaint is None else [f"index.html: {complaint}"])
    assert number == (0 if "://" in link else 1)


def test_link_checker_refuses_an_empty_site(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "check_links.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no pages" in result.stderr


def test_every_public_name_is_in_the_reference() -> None:
    reference = (DOCS / "api.md").read_text()
    documented = set(
        re.findall(r"auto(?:class|function):: (?:numpyro_rwpo\.)?(\S+?)(?:\(\))?\n", reference)
    )
    public = {name for name in numpyro_rwpo.__all__ if not name.startswith("__")} - {"plots"}
    pictures = {f"plots.{name}" for name in plots.__all__}
    learned = {f"flow.{name}" for name in flow.__all__}
    assert public | pictures | learned <= documented


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_keep_to_the_convention(path: Path) -> None:
    """The gallery itself is run when the documentation is built."""
    text = path.read_text()
    assert 'FAST = "--fast" in sys.argv' in text
    assert "diagnose(" in text
    assert text.endswith("plt.show()\n")
    assert ("NUTS(" in text) == ("print(compare_runs(" in text)


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {numpyro_rwpo.__version__}\n" in citation
    minor = ".".join(numpyro_rwpo.__version__.split(".")[:2])
    assert f"This is version {minor}." in (ROOT / "README.md").read_text()
