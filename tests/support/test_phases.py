"""What a long warm-up shows on the terminal."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr

import jax
import pytest
from helpers import lasso_regression, light_kernel, regression_data

from numpyro_rwpo.support import phases
from numpyro_rwpo.support.phases import shown_phases


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases appear after 50 milliseconds."""
    monkeypatch.setattr(phases, "DELAY", 0.05)


def test_phases_appear_after_a_while_and_disappear() -> None:
    with redirect_stderr(Terminal()) as terminal:
        with shown_phases() as show:
            show("first")
            assert terminal.getvalue() == ""
            time.sleep(0.3)
            assert terminal.getvalue().endswith("RWPO: first")
            show("second")
            assert terminal.getvalue().endswith("RWPO: second")
        # What erases a line is the last that is written, and nothing follows.
        assert terminal.getvalue().endswith("second\r\033[K")
        length = len(terminal.getvalue())
        time.sleep(0.2)
        assert len(terminal.getvalue()) == length


def test_a_short_warm_up_shows_nothing() -> None:
    with redirect_stderr(Terminal()) as terminal:
        with shown_phases() as show:
            show("first")
        with pytest.raises(ValueError, match="inside"), shown_phases() as show:
            raise ValueError("inside")
        time.sleep(0.2)
        assert terminal.getvalue() == ""


def test_nothing_is_shown_if_there_is_no_terminal() -> None:
    with redirect_stderr(io.StringIO()) as file, shown_phases() as show:
        show("first")
        time.sleep(0.2)
    assert file.getvalue() == ""


def test_warm_up_shows_its_phases() -> None:
    kernel = light_kernel(lasso_regression, num_particles=4)
    with redirect_stderr(Terminal()) as terminal:
        kernel.init(jax.random.key(0), 4, None, regression_data(), {})
    assert "RWPO: placing the particles and adapting their moves" in terminal.getvalue()
