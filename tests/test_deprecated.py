"""Names of the last version: they still work, and say what they are called now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_rwpo


@pytest.mark.parametrize(
    ("old", "new"), [("compare", "compare_runs"), ("load", "load_state"), ("save", "save_state")]
)
def test_old_names_work_and_warn(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"renamed to `numpyro_rwpo.{new}`") as caught:
        function = getattr(numpyro_rwpo, old)
    assert function is getattr(numpyro_rwpo, new)
    assert caught[0].filename == __file__
    assert old not in numpyro_rwpo.__all__


def test_importing_an_old_name_points_at_the_import(tmp_path: Path) -> None:
    """With Python's own filters, which show it only where the user's script is the cause."""
    script = tmp_path / "script.py"
    script.write_text("from numpyro_rwpo import compare\nprint(compare.__name__)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "compare_runs\n"
    assert f"{script}:1: DeprecationWarning" in done.stderr


def test_names_that_never_were() -> None:
    with pytest.raises(AttributeError, match="no attribute 'contrast'"):
        _ = numpyro_rwpo.contrast
