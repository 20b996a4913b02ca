"""Draw the figures of the explanatory pages: ``python docs/make_figures.py``.

They are written to ``docs/images``. The figure of the README and the start page is made by the
example, ``python examples/bayesian_lasso.py --output docs/images/bayesian_lasso.png``.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO, laplace_prior, plots
from numpyro_rwpo.distributions import FusedLaplace, GroupLaplace, SparseGroupLaplace

HERE = Path(__file__).parent
BIAS = HERE.parent / "benchmarks" / "results" / "bias.json"
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "0.5"


def save(figure: Any, name: str) -> None:
    """Write a figure to ``docs/images``."""
    figure.savefig(HERE / "images" / f"{name}.png", dpi=130)
    plt.close(figure)


def correlated_lasso(y: jax.Array) -> None:
    """Two coefficients with Laplace priors, whose sum the data determine better than either."""
    x = numpyro.sample("x", dist.Laplace(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.stack([x.sum(), x[0]]), jnp.array([0.7, 1.5])), obs=y)


def transport() -> None:
    """Draw an ensemble in transport, the corrected draws, and what one particle attends to."""
    data, num_particles = jnp.array([1.5, 1.0]), 300
    kernel = RWPO(correlated_lasso, num_particles=num_particles)
    path = np.asarray(kernel.transport_path(jax.random.key(0), data, num_steps=40))

    mcmc = MCMC(kernel, num_warmup=200, num_samples=num_particles)
    mcmc.run(jax.random.key(0), data)
    draws = np.asarray(mcmc.get_samples()["x"])

    figure, axes = plt.subplots(
        1, 4, figsize=(9, 2.6), layout="constrained", sharex=True, sharey=True
    )
    plots.plot_transport(path, frames=[0, 4, len(path) - 1], coordinates=(0, 1), axes=axes[:3])
    axes[3].plot(*draws.T, ".", color=GREEN, markersize=4)
    axes[3].spines[["top", "right"]].set_visible(False)
    axes[3].set_title("draws after correction", fontsize="medium")
    axes[3].set_xlabel("coordinate 0", fontsize="small")
    save(figure, "transport")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    draws = draws[:120]  # more particles would hide each other
    query = int(np.argmin(((draws - np.array([1.0, 1.0])) ** 2).sum(1)))
    for axes, attention in ((left, "joint"), (right, "marginal")):
        plots.plot_attention(draws, query, laplace_prior(1.0), attention=attention, axes=axes)
        axes.set_title(f"{attention}: {axes.get_title()}", fontsize="medium")
    save(figure, "attention")


def proximal_kernel() -> None:
    """Draw proximal kernels of three points, and the mixture given by a small ensemble."""
    prior, prox_time = laplace_prior(2.0), 0.2
    x = jnp.linspace(-2.5, 3.0, 800)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for y, color in ((-1.0, BLUE), (0.1, ORANGE), (1.5, GREEN)):
        kernel = jnp.exp(prior.log_prob(x, jnp.array(y), prox_time))
        gaussian = jnp.exp(dist.Normal(y, (2 * prox_time) ** 0.5).log_prob(x))
        left.plot(x, kernel, color=color, label=f"y = {y:g}")
        left.plot(x, gaussian, color=color, linestyle=":", linewidth=1)
    left.axvline(0.0, color=GRAY, linewidth=0.8, zorder=0)
    left.set_title("proximal kernels; dotted: without the prior", fontsize="medium")
    left.legend(frameon=False, fontsize="small")
    particles = jnp.array([-1.2, -0.5, -0.1, 0.1, 0.2, 0.5, 0.9, 1.6])
    bumps = jnp.exp(prior.log_prob(x[:, None], particles, prox_time)) / particles.size
    right.plot(x, bumps, color=GRAY, linewidth=0.7)
    right.plot(x, bumps.sum(1), color=BLUE, linewidth=2)
    right.plot(particles, jnp.zeros_like(particles), "|", color="black", markersize=12)
    right.set_title("eight particles and the density they make", fontsize="medium")
    for axes in (left, right):
        axes.set_xlabel("x")
        axes.set_yticks([])
    save(figure, "proximal_kernel")


def exact_flow() -> None:
    """Draw the exact flow in a V-shaped valley and leapfrog steps of the same length."""
    prior, step, num_steps = laplace_prior(2.0), 0.6, 16

    def energy(x: Any, p: Any) -> Any:
        return 0.5 * p**2 + prior.potential(x)

    x0, p0 = jnp.array(1.0), jnp.array(0.5)
    fine = jnp.linspace(0.0, step * num_steps, 1000)
    exact_x, exact_p = prior.hamiltonian_flow(x0, p0, fine)
    times = step * np.arange(num_steps + 1)
    at_steps = prior.hamiltonian_flow(x0, p0, jnp.asarray(times))
    x, p, leapfrog = x0, p0, [(x0, p0)]
    for _ in range(num_steps):
        p = p - 0.5 * step * prior.subgradient(x)
        x = x + step * p
        p = p - 0.5 * step * prior.subgradient(x)
        leapfrog.append((x, p))
    leap_x, leap_p = np.array(leapfrog).T

    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    for panel, line, dots, title in (
        (axes[0], exact_x, leap_x, "position"),
        (axes[1], exact_p, leap_p, "momentum"),
    ):
        panel.plot(fine, line, color=BLUE, label="exact flow")
        panel.plot(times, dots, "o", color=ORANGE, markersize=3, label="leapfrog")
        panel.set_title(title, fontsize="medium")
    axes[2].plot(times, energy(*at_steps) - energy(x0, p0), color=BLUE)
    axes[2].plot(times, energy(leap_x, leap_p) - energy(x0, p0), "o-", color=ORANGE, markersize=3)
    axes[2].set_title("error of the energy", fontsize="medium")
    axes[0].legend(frameon=False, fontsize="small")
    for panel in axes:
        panel.set_xlabel("time")
    save(figure, "exact_flow")


def heads() -> None:
    """Draw the spread of noise-free particles by dimension, from the stored measurements."""
    rows = json.loads(BIAS.read_text())["rows"]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    # The marginal head is drawn last and dashed, because on independent coordinates it is the same
    # as the copula head.
    styles = {
        "paper": (GRAY, "-"),
        "joint": (ORANGE, "-"),
        "copula": (BLUE, "-"),
        "marginal": (GREEN, "--"),
    }
    num_particles = 300
    for axes, target in zip(panels, ("normal", "lasso"), strict=True):
        for sampler, (color, line) in styles.items():
            points = sorted(
                (row["dim"], row["sd_ratio"])
                for row in rows
                if (row["target"], row["sampler"], row["num_particles"])
                == (target, sampler, num_particles)
            )
            axes.plot(*np.array(points).T, f"o{line}", color=color, label=sampler, markersize=4)
        axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_xticks([2, 10, 30, 100], ["2", "10", "30", "100"])
        axes.minorticks_off()
        axes.set_xlabel("dimension")
        axes.set_title(f"{target}, {num_particles} particles", fontsize="medium")
    panels[0].set_ylabel("sd of the particles / true sd")
    panels[0].legend(frameon=False, fontsize="small")
    save(figure, "heads")


def structured_priors() -> None:
    """Draw what structured priors believe: densities of a pair, and lines drawn from priors."""
    axis = np.linspace(-2.5, 2.5, 201)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1))
    pairs = {
        "Laplace": dist.Laplace(0.0, 1.0).expand([2]).to_event(1),
        "GroupLaplace": GroupLaplace(1.0, 2),
        "SparseGroupLaplace": SparseGroupLaplace(1.0, 2, l1_ratio=0.5),
    }
    figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
    for place, (name, site) in zip(axes, pairs.items(), strict=False):
        log_prob = np.asarray(site.log_prob(x))
        levels = log_prob.max() - np.arange(0.5, 3.1, 0.5)[::-1]
        place.contour(
            axis, axis, log_prob, levels=levels, colors=BLUE, linewidths=1, linestyles="-"
        )
        place.set_title(name, fontsize="medium")
        place.set_aspect("equal")
        place.set_xticks([])
        place.set_yticks([])
    for place, order in zip(axes[3:], (1, 2), strict=True):
        site = FusedLaplace(0.1, 100, order, start_scale=0.3 if order == 1 else 0.01)
        lines = np.asarray(site.sample(jax.random.key(order), (3,)))
        for line, color in zip(lines, (BLUE, ORANGE, GREEN), strict=True):
            place.plot(line, color=color, linewidth=1)
        place.set_title(f"FusedLaplace, order {order}", fontsize="medium")
        place.set_yticks([])
    save(figure, "structured_priors")


if __name__ == "__main__":
    plt.switch_backend("agg")
    for draw in (transport, proximal_kernel, exact_flow, heads, structured_priors):
        draw()
