"""Pictures: what is drawn, on the axes that were given, and nothing left behind."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from numpyro_rwpo import compare_runs, plots
from numpyro_rwpo.diagnostics.plots.coefficients import _apart
from numpyro_rwpo.diagnostics.selection import select_variables
from numpyro_rwpo.heads.density import attention_weights
from numpyro_rwpo.heads.joint import fit_joint
from numpyro_rwpo.priors.laplace import laplace_prior

RNG = np.random.default_rng(0)
PATH = np.cumsum(RNG.normal(size=(8, 30, 4)), axis=0)  # iterations, particles, dim


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Any:
    before = dict(plt.rcParams), plt.get_fignums()
    yield
    assert (dict(plt.rcParams), plt.get_fignums()) == before


def drawn(axes: Any) -> None:
    """Render, so that what only fails when drawn fails here."""
    np.ravel(axes)[0].figure.canvas.draw()


def test_comparison() -> None:
    first = {"a": RNG.normal(size=(2, 100)), "b": RNG.normal(size=(2, 100, 3))}
    second = {"a": 2 + RNG.normal(size=(2, 100)), "b": RNG.normal(size=(2, 100, 3))}
    axes = compare_runs(first, second, labels=["one", "two"]).plot(num_coordinates=3)
    drawn(axes)
    forest, density, ranks, pair = axes
    labels = [label.get_text() for label in forest.get_yticklabels()]
    assert len(labels) == 3
    assert labels[0] == "a"  # the most different one
    assert density.get_xlabel() == pair.get_xlabel() == "a"
    assert len(ranks.lines) == 2 * 2 + 1  # chains of both, and the line at 1
    with pytest.raises(ValueError, match="`num_coordinates`"):
        compare_runs(first, second).plot(num_coordinates=0)


def test_comparison_of_a_single_coordinate() -> None:
    drawn(compare_runs({"a": RNG.normal(size=(2, 50))}, {"a": RNG.normal(size=(1, 50))}).plot())


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_transport_in_frames(dim: int) -> None:
    axes = plots.plot_transport(PATH[:, :, :dim])
    drawn(axes)
    assert [panel.get_title() for panel in axes] == ["iteration 0", "iteration 5", "iteration 7"]
    _, points = axes[0].collections
    assert points.get_offsets().shape == (30, 2)


def test_transport_draws_on_the_axes_it_gets() -> None:
    panels = Figure().subplots(1, 2)
    axes = plots.plot_transport(PATH, frames=[0, 3], coordinates=(2, 3), axes=panels)
    assert list(axes) == list(panels)
    np.testing.assert_allclose(axes[1].collections[1].get_offsets(), PATH[3][:, [2, 3]])
    with pytest.raises(ValueError, match="one for each of 3 frames; got 2"):
        plots.plot_transport(PATH, frames=[0, 1, 2], axes=panels)
    with pytest.raises(ValueError, match=r"got \(30, 4\)"):
        plots.plot_transport(PATH[0])


def test_transport_as_a_film(tmp_path: Any) -> None:
    from PIL import Image

    file = tmp_path / "flow.gif"
    plots.animate_transport(PATH, file)
    with Image.open(file) as image:
        assert image.n_frames == len(PATH)


def test_attention_weights_are_those_of_the_score() -> None:
    """The weighted mean that they give is the one inside the joint head's score."""
    particles = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)
    prior = laplace_prior(jnp.array([1.0, 0.0, 2.0]))
    time = jnp.array([0.1, 0.2, 0.3])
    weights = attention_weights(particles, 4, prior, time)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    score = -0.5 * (prior.subgradient(particles[4]) + (particles[4] - weights @ particles) / time)
    expected = fit_joint(particles, prior, time).score(particles)[4]
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", ["joint", "marginal"])
def test_attention(attention: str) -> None:
    axes = plots.plot_attention(PATH[0], 3, attention=attention)
    drawn(axes)
    assert "effective number" in axes.get_title()
    for bad, match in [((PATH[0], 30), "below 30"), ((PATH[0][:, :1], 0), "dim >= 2")]:
        with pytest.raises(ValueError, match=match):
            plots.plot_attention(*bad)
    with pytest.raises(ValueError, match="`attention`"):
        plots.plot_attention(PATH[0], 0, attention="copula")


def test_shrinkage_paths() -> None:
    scales = np.array([1.0, 0.01, 0.1])
    draws = scales[:, None, None] * RNG.normal(1.0, 0.1, size=(3, 200, 2))
    axes = plots.plot_shrinkage(scales, draws, names=["age", "bmi"])
    drawn(axes)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.01, 0.1, 1.0])  # sorted
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.01, 0.1, 1.0], rtol=0.1)
    with pytest.raises(ValueError, match="num_scales"):
        plots.plot_shrinkage(scales[:2], draws)
    with pytest.raises(ValueError, match="must have 2 entries"):
        plots.plot_shrinkage(scales, draws, names=["age"])


def test_labels_are_apart_in_order_and_not_moved_without_need():
    heights = np.array([0.0, 5.0, 0.1, 0.05, 9.0])
    moved = _apart(heights, 1.0)
    np.testing.assert_allclose(moved, [-0.95, 5.0, 1.05, 0.05, 9.0])
    assert np.diff(np.sort(moved)).min() > 1 - 1e-9


COEFFICIENTS = np.stack(
    [
        np.linspace(0.5, 1.5, 1000),  # surely positive
        np.linspace(-0.9, 0.1, 1000),  # negligible with probability 0.2
        np.linspace(-0.05, 0.05, 1000),  # negligible
    ],
    axis=1,
)


def test_selection_is_the_largest_set_within_the_rate() -> None:
    strict = select_variables(COEFFICIENTS, 0.1)
    np.testing.assert_allclose(strict.prob_positive, [1.0, 0.1, 0.5], atol=0.002)
    np.testing.assert_allclose(strict.prob_null, [0.0, 0.2, 1.0], atol=0.002)
    assert strict.selected.tolist() == [True, False, False]
    assert strict.false_discovery_rate == 0
    loose = select_variables(COEFFICIENTS.reshape(4, 250, 3), 0.1, max_fdr=0.15)
    assert loose.selected.tolist() == [True, True, False]
    np.testing.assert_allclose(loose.false_discovery_rate, 0.1, atol=0.002)
    assert select_variables(COEFFICIENTS[:, 2:], 0.1).false_discovery_rate == 0


def test_selection_picture() -> None:
    axes = plots.plot_selection(COEFFICIENTS, 0.1, names=["a", "b", "c"], max_fdr=0.15)
    drawn(axes)
    assert "2 of 3" in axes.get_title()
    texts = [text.get_text() for text in axes.texts]
    assert texts[1] == "P(< 0) = 0.90   P(|.| < 0.1) = 0.20"
    for options, match in [({"epsilon": 0.0}, "`epsilon`"), ({"max_fdr": 1.0}, "`max_fdr`")]:
        with pytest.raises(ValueError, match=match):
            plots.plot_selection(COEFFICIENTS, **{"epsilon": 0.1, **options})
    with pytest.raises(ValueError, match="`draws`"):
        plots.plot_selection(COEFFICIENTS[:, 0], 0.1)
