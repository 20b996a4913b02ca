"""Posteriors with several modes, with the true share of each.

The shares follow from the definition, from a sum over a grid, or from long runs of parallel
tempering (:mod:`benchmarks.mode_references`), whose Monte Carlo error is kept with them.

Two of the targets are as far apart as their name says. Those with different scales are placed so
that their basins of attraction meet at the origin, around which samplers start: if one basin does
not reach the start, no descent finds that mode (``many`` shows how often that happens).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks import mode_models

Array = np.ndarray


REFERENCES = Path(__file__).parent / "posteriors" / "modes.json"


class ModeTarget(NamedTuple):
    """A posterior with several modes.

    Attributes:
        log_density: of a position (dim,); ``None`` if the target is defined by its model.
        dim: number of coordinates.
        mode_of: number of the mode of positions (..., dim).
        shares: true share of each mode.
        errors: Monte Carlo standard errors of the shares, 0 if these are exact.
        model: a NumPyro model whose sites are given by position; ``None`` makes one with a factor.
        position: positions (..., dim) from the samples of the model.
    """

    log_density: Callable[[jax.Array], jax.Array] | None
    dim: int
    mode_of: Callable[[Array], Array]
    shares: Array
    errors: Array | float = 0.0
    model: Callable[[], None] | None = None
    position: Callable[[dict[str, Array]], Array] = lambda samples: np.asarray(samples["x"])


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


def aliases_laplace() -> ModeTarget:
    """The aliases as the gallery has them: the frequency is a Laplace site."""

    def position(samples: dict[str, Array]) -> Array:
        return np.asarray(samples["frequency"])[..., None]

    exact = aliases()
    return exact._replace(log_density=None, model=mode_models.frequency, position=position)


def small_component() -> ModeTarget:
    """A mixture of 95 and 5 observations, whose labels are exchangeable: equal shares."""
    return ModeTarget(
        None,
        5,
        mode_models.labeling,
        np.full(2, 0.5),
        0.0,
        mode_models.small_component,
        mode_models.mixture_position,
    )


def _reference(name: str) -> dict[str, Any]:
    """What :mod:`benchmarks.mode_references` has found for a target."""
    known: dict[str, Any] = json.loads(REFERENCES.read_text())[name]
    return known | {key: np.asarray(known[key]) for key in ("shares", "errors")}


def sensors() -> ModeTarget:
    """Positions of eight sensors, of which distances to some others are known."""
    known = _reference("sensors")
    return ModeTarget(
        None,
        16,
        lambda x: mode_models.sensor_pattern(x, known),
        known["shares"],
        known["errors"],
        mode_models.sensors,
        mode_models.sensor_position,
    )


def lotka_volterra() -> ModeTarget:
    """Hares and lynxes, with a fit that takes all cycles for noise as a minor mode."""
    known = _reference("Lotka-Volterra")
    return ModeTarget(
        None,
        8,
        mode_models.is_noise,
        known["shares"],
        known["errors"],
        mode_models.lotka_volterra,
        mode_models.lotka_volterra_position,
    )


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
    "aliases, Laplace site": aliases_laplace,
    "small component": small_component,
    "sensors": sensors,
    "Lotka-Volterra": lotka_volterra,
    "bridge": bridge,
    "labelings": labelings,
    "many, 5": lambda: many(5),
    "many, 20": lambda: many(20),
    "many, 50": lambda: many(50),
    "many, 100": lambda: many(100),
}


def as_model(target: ModeTarget) -> Callable[[], None]:
    """The target as a NumPyro model."""
    if target.model is not None:
        return target.model
    assert target.log_density is not None
    log_density = target.log_density

    def model() -> None:
        support = dist.constraints.real_vector
        x = numpyro.sample("x", dist.ImproperUniform(support, (), (target.dim,)))
        numpyro.factor("density", log_density(x))

    return model
