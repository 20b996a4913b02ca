"""No silent failures on the zoo: draws are right, or the user is told that they are not.

Draws are right if they are within Monte Carlo error of the truth, at a limit that correct draws
exceed once in a thousand runs over all their moments together (:mod:`tests.zoo.driver`).
"""

from __future__ import annotations

import pytest

from tests.zoo.driver import HEADER, recorded, run, table_row
from tests.zoo.targets import TARGETS

NUTS = recorded("nuts")


def test_nuts_is_recorded_on_every_target() -> None:
    assert set(NUTS) == set(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_right_or_flagged_and_right_where_nuts_is(name: str) -> None:
    row, report = run(name)
    print(f"\n{HEADER}\n{table_row(name, row)}\n{report}")
    assert row.is_right or row.is_flagged
    if NUTS[name].verdict == "right":
        assert row.is_right
    if not TARGETS[name]().truth:  # improper: nobody can be right
        assert row.is_flagged
