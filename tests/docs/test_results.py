"""Tables in the documentation say so if they were not made with the present sampler."""

import ast
import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DYNAMICS = "numpyro_rwpo/dynamics"
INCLUDE = re.compile(r"\{include\} \.\./benchmarks/results/(\w+)\.md")
NOTICE = "Measured with an earlier sampler"
# Learned flows, and the time of a gradient.
WITHOUT_SAMPLER = {"flow_samples", "flow_digits", "floor"}


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant):
                del body[0]
    return ast.dump(tree)


@cache
def sampler_at(commit: str) -> frozenset[tuple[str, str]]:
    """The code of the dynamics, but for its comments and docstrings."""
    names = git("ls-tree", "--name-only", commit, f"{DYNAMICS}/").split()
    code = ((name, without_docstrings(git("show", f"{commit}:{name}"))) for name in names)
    return frozenset(code)


def commits_of(record: object) -> set[str]:
    """What stands under "commit" anywhere in a record."""
    if isinstance(record, list):
        return set().union(*map(commits_of, record))
    if not isinstance(record, dict):
        return set()
    own = {record["commit"]} if "commit" in record else set()
    return own.union(*map(commits_of, record.values()))


def is_current(table: str) -> bool:
    """Whether all commits of a table have the dynamics of this one."""
    if table in WITHOUT_SAMPLER:
        return True
    path = ROOT / "benchmarks/results" / f"{table}.json"
    commits = commits_of(json.loads(path.read_text())) if path.exists() else set()
    try:
        return bool(commits) and all(sampler_at(x) == sampler_at("HEAD") for x in commits)
    except subprocess.CalledProcessError:  # no such commit
        return False


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_tables_of_an_earlier_sampler_are_announced(page: Path) -> None:
    try:
        git("cat-file", "-e", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the commits of the tables are in the git repository only")
    text = page.read_text()
    old = [found for found in INCLUDE.finditer(text) if not is_current(found[1])]
    silent = [found[1] for found in old if NOTICE not in text[: found.start()]]
    assert not silent, f"made with another sampler; run them again, or say so: {silent}"


def test_a_change_of_a_comment_leaves_tables_valid() -> None:
    changed = without_docstrings('def f(x):\n    """Old."""\n    return x  # why\n')
    assert changed == without_docstrings('def f(x):\n    """New."""\n    return x\n')
    assert changed != without_docstrings("def f(x):\n    return -x\n")


def test_commits_are_found_at_any_depth() -> None:
    record = {"records": [{"versions": {"commit": "a"}}, {"versions": {"commit": "b"}}], "x": 1}
    assert commits_of(record) == {"a", "b"}
