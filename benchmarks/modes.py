"""Posteriors with several modes: are the shares right, and what do they cost?

From the repository root::

    python -m benchmarks.modes [--targets NAME ...] [--samplers NAME ...] [--seeds N] [--out FILE]

Every sampler is run with its defaults for 4 vectorized chains of 1000 draws, in one process for
each call. For every target the share of each mode is known from its definition. The table has, over
all seeds, the mean of the squared scores of the shares (deviation over the Monte Carlo error that
the effective sample size of the mode's indicator gives; 1 is right, and a mode that is never
visited counts as infinite), the largest R-hat, the number of seeds in which a mode was missed,
gradients of all chains, and wall seconds with compilation.

Two of the targets are as far apart as their name says. Those with different scales are placed so
that their basins of attraction meet at the origin, around which samplers start: if one basin does
not reach the start, no descent finds that mode (``many`` shows how often that happens).
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_uniform

from numpyro_rwpo import RWPO

Array = np.ndarray


class ModeTarget(NamedTuple):
    """A posterior with several modes.

    Attributes:
        log_density: of a position (dim,).
        dim: number of coordinates.
        mode_of: number of the mode of positions (..., dim).
        shares: true share of each mode.
    """

    log_density: Callable[[jax.Array], jax.Array]
    dim: int
    mode_of: Callable[[Array], Array]
    shares: Array


def normals(centers: Array, sds: Array, shares: Array) -> ModeTarget:
    """Spherical normal densities."""
    dim = centers.shape[1]
    log_scale = np.log(shares) - dim * np.log(sds)

    def log_density(x: jax.Array) -> jax.Array:
        square = ((x[None] - centers.astype(np.float32)) ** 2).sum(1)
        return jax.nn.logsumexp(log_scale - square / sds**2 / 2)

    def mode_of(x: Array) -> Array:
        square = ((x[..., None, :] - centers) ** 2).sum(-1)
        return np.argmax(log_scale - square / sds**2 / 2, -1)

    return ModeTarget(log_density, dim, mode_of, shares)


def two(dim: int, ratio: float = 1.0) -> ModeTarget:
    """Shares 0.9 and 0.1, each 20 standard deviations from the origin, or a little more."""
    far = 20 * ratio
    near = np.sqrt(400 + 2 * dim * np.log(ratio))  # The basins meet at the origin.
    direction = np.ones(dim) / np.sqrt(dim)
    centers = np.stack([-near * direction, far * direction])
    return normals(centers, np.array([1.0, ratio]), np.array([0.9, 0.1]))


def circle(number: int) -> ModeTarget:
    """Unit normals on a circle of radius 20, with shares in proportion to 1, 2, 3, ..."""
    angle = 2 * np.pi * np.arange(number) / number
    centers = 20 * np.stack([np.cos(angle), np.sin(angle)], 1)
    weights = np.arange(1, number + 1.0)
    return normals(centers, np.ones(number), weights / weights.sum())


def many(number: int) -> ModeTarget:
    """Equal unit normals, uniform within 200 of the origin in the plane, at least 8 apart."""
    rng = np.random.default_rng(number)
    centers = np.zeros((0, 2))
    while len(centers) < number:
        new = rng.uniform(-200, 200, size=2)
        if not len(centers) or np.linalg.norm(centers - new, axis=1).min() > 8:
            centers = np.concatenate([centers, new[None]])
    return normals(centers, np.ones(number), np.full(number, 1 / number))


def dual_moon() -> ModeTarget:
    """Two crescents, NumPyro's example of neural transport."""

    def log_density(x: jax.Array) -> jax.Array:
        ring = ((jnp.linalg.norm(x) - 2) / 0.4) ** 2 / 2
        sides = -(((x[0] + jnp.array([-2.0, 2.0])) / 0.6) ** 2) / 2
        return jax.nn.logsumexp(sides) - ring

    return ModeTarget(log_density, 2, lambda x: (x[..., 0] > 0).astype(int), np.full(2, 0.5))


def shells(dim: int) -> ModeTarget:
    """Two spheres of radius 2 and thickness 0.1, 7 apart, NumPyro's example of annealing."""

    def log_density(x: jax.Array) -> jax.Array:
        center = jnp.zeros(dim).at[0].set(3.5)
        distances = jnp.stack([jnp.linalg.norm(x - center), jnp.linalg.norm(x + center)])
        return jax.nn.logsumexp(-(((distances - 2) / 0.1) ** 2) / 2)

    return ModeTarget(log_density, dim, lambda x: (x[..., 0] > 0).astype(int), np.full(2, 0.5))


def aliases() -> ModeTarget:
    """A frequency observed at integer times but for jitter, the gallery's example: ten aliases."""
    rng = np.random.default_rng(1)
    times = np.arange(1, 7) + 0.05 * rng.normal(size=6)
    y = np.cos(2.5 * times) + 0.5 * rng.normal(size=6)

    def log_density(x: jax.Array) -> jax.Array:
        residual = (y - jnp.cos(x[0] * times)) / 0.5
        return -(residual**2).sum() / 2 - jnp.abs(x[0]) / 3

    # Between neighboring aliases, 2 pi k +- 2.5, and beyond the outermost.
    centers = np.sort([2 * np.pi * k + sign * 2.5 for k in range(-2, 3) for sign in (-1, 1)])
    borders = (centers[1:] + centers[:-1]) / 2
    return by_quadrature(
        log_density, [(-20, 20, 20_001)], lambda x: np.digitize(x[..., 0], borders)
    )


def bridge() -> ModeTarget:
    """Two columns with correlation 0.999 under a bridge prior: either coefficient will do.

    With Laplace priors the posterior of a linear regression is log-concave and has one mode.
    """
    rng = np.random.default_rng(2)
    first = rng.normal(size=50)
    X = np.stack([first, 0.999 * first + np.sqrt(1 - 0.999**2) * rng.normal(size=50)], 1)
    y = 2.0 * X.mean(1) + 0.5 * rng.normal(size=50)

    def log_density(x: jax.Array) -> jax.Array:
        return -(((y - X @ x) / 0.5) ** 2).sum() / 2 - 6 * jnp.sqrt(jnp.abs(x) + 1e-3).sum()

    return by_quadrature(
        log_density, [(-4, 5, 1801)] * 2, lambda x: (x[..., 0] > x[..., 1]).astype(int)
    )


def labelings() -> ModeTarget:
    """Locations of three components with exchangeable priors: six labelings of equal shares."""
    rng = np.random.default_rng(3)
    y = np.concatenate([rng.normal(m, 0.7, size=30) for m in (-4.0, 0.0, 5.0)])

    def log_density(x: jax.Array) -> jax.Array:
        distance = (y[:, None] - x[None]) / 0.7
        return jax.nn.logsumexp(-(distance**2) / 2, axis=1).sum() - ((x / 5) ** 2).sum() / 2

    def mode_of(x: Array) -> Array:
        order = np.argsort(x, -1)
        return 2 * order[..., 0] + (order[..., 1] > order[..., 2])

    return ModeTarget(log_density, 3, mode_of, np.full(6, 1 / 6))


def by_quadrature(
    log_density: Callable[[jax.Array], jax.Array],
    ranges: list[tuple[float, float, int]],
    mode_of: Callable[[Array], Array],
) -> ModeTarget:
    """A target whose shares are sums over a grid, of which ``ranges`` has one axis each."""
    axes = [np.linspace(*r) for r in ranges]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    log_p = np.asarray(jax.jit(jax.vmap(log_density))(jnp.asarray(grid, jnp.float32)), np.float64)
    p = np.exp(log_p - log_p.max())
    shares = np.bincount(mode_of(grid), weights=p)
    return ModeTarget(log_density, len(axes), mode_of, shares / shares.sum())


TARGETS: dict[str, Callable[[], ModeTarget]] = {
    "two, d = 2": lambda: two(2),
    "two, d = 10": lambda: two(10),
    "two, d = 50": lambda: two(50),
    "two scales, d = 2": lambda: two(2, 10.0),
    "two scales, d = 10": lambda: two(10, 10.0),
    "two scales, d = 50": lambda: two(50, 10.0),
    "circle of 4": lambda: circle(4),
    "circle of 8": lambda: circle(8),
    "dual moon": dual_moon,
    "shells, d = 2": lambda: shells(2),
    "shells, d = 5": lambda: shells(5),
    "aliases": aliases,
    "bridge": bridge,
    "labelings": labelings,
    "many, 5": lambda: many(5),
    "many, 20": lambda: many(20),
    "many, 50": lambda: many(50),
    "many, 100": lambda: many(100),
}
# The wide start covers the square in which the modes of ``many`` are.
WIDE = init_to_uniform(radius=200.0)
KERNELS: dict[str, tuple[Any, int]] = {
    "rwpo": (RWPO, 200),
    "nuts": (NUTS, 1000),
    "rwpo_wide": (partial(RWPO, init_strategy=WIDE), 200),
}


def as_model(target: ModeTarget) -> Callable[[], None]:
    """The target as a NumPyro model."""

    def model() -> None:
        support = dist.constraints.real_vector
        x = numpyro.sample("x", dist.ImproperUniform(support, (), (target.dim,)))
        numpyro.factor("density", target.log_density(x))

    return model


def measure(target: ModeTarget, kernel: Any, num_warmup: int, seed: int) -> dict[str, Any]:
    """One run."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    mcmc.run(jax.random.key(seed), extra_fields=("num_steps",))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)
    seconds = time.perf_counter() - start
    indicator = (target.mode_of(draws)[..., None] == np.arange(len(target.shares))).astype(float)
    share = indicator.mean((0, 1))
    effective = np.array(
        [
            effective_sample_size(x) if 0 < x.mean() < 1 else 0.0
            for x in np.moveaxis(indicator, 2, 0)
        ]
    )
    error = np.sqrt(
        target.shares * (1 - target.shares) / np.clip(effective, 1e-9, draws[..., 0].size)
    )
    scores = np.where(share > 0, (share - target.shares) / error, np.inf)
    if isinstance(kernel, RWPO):
        gradients = int(mcmc.last_state.num_gradients.sum())
    else:  # Those of warm-up, which NumPyro does not keep, are counted like those of sampling.
        steps = np.asarray(mcmc.get_extra_fields()["num_steps"])
        gradients = int(steps.sum() * (1 + num_warmup / 1000))
    return {
        "shares": share.tolist(),
        "missed": int((share == 0).sum()),
        "score": float(np.mean(scores**2)),
        "r_hat": float(np.max(split_gelman_rubin(draws))),
        "gradients": gradients,
        "seconds": seconds,
    }


def row(name: str, sampler: str, runs: list[dict[str, Any]]) -> str:
    """A row of the table."""
    scores = np.array([run["score"] for run in runs])
    worst = max(run["r_hat"] for run in runs)
    gradients, seconds = (np.median([run[key] for run in runs]) for key in ("gradients", "seconds"))
    missed = sum(run["missed"] > 0 for run in runs)
    number = sum(run["missed"] for run in runs) / (len(runs) * len(runs[0]["shares"]))
    score = f"{scores.mean():.2f}" if np.isfinite(scores).all() else "infinite"
    return (
        f"| {name} | {sampler} | {len(runs)} | {score} | {worst:.3f} | {missed} | {number:.1%} | "
        f"{gradients:,.0f} | {seconds:.1f} |"
    )


HEADER = (
    "| target | sampler | seeds | squared scores, mean | R-hat, worst | seeds with a missed mode | "
    "modes missed | gradients, median | seconds, median |\n" + "| --- | --- |" + " ---: |" * 7
)


def main() -> None:
    """Run the cells that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--samplers", nargs="*", default=["rwpo", "nuts"], choices=list(KERNELS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/modes.json"))
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    print(HEADER, flush=True)
    for name in args.targets:
        target = TARGETS[name]()
        for sampler in args.samplers:
            make, num_warmup = KERNELS[sampler]
            runs = found.setdefault(f"{name}: {sampler}", [])
            kernel = make(as_model(target))
            while len(runs) < args.seeds:
                if sampler == "nuts":  # NumPyro's vectorized NUTS cannot be run twice.
                    kernel = make(as_model(target))
                runs.append(measure(target, kernel, num_warmup, seed=len(runs)))
                args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(row(name, sampler, runs), flush=True)


if __name__ == "__main__":
    main()
