"""The version of jaxlib that computes wrong sums on CPUs."""

import os

import pytest

from numpyro_rwpo.support import faulty_jaxlib
from numpyro_rwpo.support.faulty_jaxlib import (
    FAULTY,
    FLAG,
    avoid_fault,
    sums_are_right,
    warn_of_fault,
)


def test_sums_of_many_rows_are_right() -> None:
    """In this process, whatever its version of jaxlib."""
    assert sums_are_right()


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        (FAULTY, "", FLAG),
        (FAULTY, "--some_flag=1", f"--some_flag=1 {FLAG}"),
        (FAULTY, f"{FLAG}dot", f"{FLAG}dot"),
        ("0.10.1", "--some_flag=1", "--some_flag=1"),
    ],
)
def test_the_flag_is_set_for_one_version_only(
    monkeypatch: pytest.MonkeyPatch, version: str, before: str, after: str
) -> None:
    monkeypatch.setattr(faulty_jaxlib, "version", lambda _: version)
    monkeypatch.setenv("XLA_FLAGS", before)
    avoid_fault()
    assert os.environ["XLA_FLAGS"] == after


def test_a_flag_that_came_too_late_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_jaxlib, "version", lambda _: FAULTY)
    monkeypatch.setattr(faulty_jaxlib, "sums_are_right", lambda: False)
    with pytest.warns(RuntimeWarning, match="computes wrong sums on CPUs"):
        warn_of_fault.__wrapped__()
