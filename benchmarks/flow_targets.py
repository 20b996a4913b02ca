"""Distributions on which the learned flows are trained, with densities in closed form.

There are five in the plane. Any of them can be embedded in more dimensions, where the other
coordinates are sparse (independent Laplace variables with a small scale).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

SPARSE_SCALE = 0.2
_ARC_POINTS = 200


class Planar(NamedTuple):
    """A distribution in the plane: draws (rng, n) -> (n, 2), and log density (n, 2) -> (n,)."""

    sample: Callable[[np.random.Generator, int], np.ndarray]
    log_prob: Callable[[np.ndarray], np.ndarray]


def _normals(means: np.ndarray, sd: float) -> Planar:
    """Equal mixture of isotropic normals; with many of them, a curve thickened by noise."""

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        return means[rng.integers(0, len(means), n)] + sd * rng.normal(size=(n, 2))

    def log_prob(x: np.ndarray) -> np.ndarray:
        square = ((x[:, None] - means) ** 2).sum(-1)
        constant = np.log(len(means) * 2 * np.pi * sd**2)
        return logsumexp(-0.5 * square / sd**2, axis=1) - constant

    return Planar(sample, log_prob)


def _circle(radius: float, number: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(number) / number
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _moons() -> Planar:
    t = np.pi * (np.arange(_ARC_POINTS) + 0.5) / _ARC_POINTS
    upper = np.stack([np.cos(t), np.sin(t)], 1)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1)
    return _normals(np.concatenate([upper, lower]) - [0.5, 0.25], 0.1)


def _checkerboard() -> Planar:
    """Uniform on the black squares of a board of four by four, each of side 1."""

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        row, column = rng.integers(0, 4, n), rng.integers(0, 2, n)
        corner = np.stack([2 * column + row % 2, row], 1)
        return corner + rng.uniform(size=(n, 2)) - 2

    def log_prob(x: np.ndarray) -> np.ndarray:
        cell = np.floor(x + 2).astype(int)
        is_black = (cell.sum(1) % 2 == 0) & ((cell >= 0) & (cell < 4)).all(1)
        return np.where(is_black, -np.log(8.0), -np.inf)

    return Planar(sample, log_prob)


def _pinwheel() -> Planar:
    """Five blades, each an elongated normal, twisted by an angle that grows with the radius."""
    angles = 2 * np.pi * np.arange(5) / 5
    sds = np.array([0.3, 0.1])

    def turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        blade = np.array([1.2, 0.0]) + sds * rng.normal(size=(n, 2))
        x = turn(blade, angles[rng.integers(0, 5, n)])
        return turn(x, 1.5 * np.hypot(*x.T))

    def log_prob(x: np.ndarray) -> np.ndarray:
        straight = turn(x, -1.5 * np.hypot(*x.T))  # a rotation at fixed radius: the Jacobian is 1
        parts = [
            -0.5 * (((turn(straight, np.full(len(x), -a)) - [1.2, 0.0]) / sds) ** 2).sum(1)
            for a in angles
        ]
        return logsumexp(parts, axis=0) - np.log(5 * 2 * np.pi * sds.prod())

    return Planar(sample, log_prob)


PLANAR = {
    "moons": _moons(),
    "rings": _normals(np.concatenate([_circle(1.0, 200), _circle(2.2, 200)]), 0.1),
    "checkerboard": _checkerboard(),
    "pinwheel": _pinwheel(),
    "eight": _normals(_circle(2.0, 8), 0.15),
}


def sample(name: str, dim: int, rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws (n, dim) of a planar distribution and dim - 2 sparse coordinates, float32."""
    sparse = rng.laplace(scale=SPARSE_SCALE, size=(n, dim - 2))
    return np.concatenate([PLANAR[name].sample(rng, n), sparse], 1).astype(np.float32)


def log_prob(name: str, x: np.ndarray) -> np.ndarray:
    """Log density at (n, dim), (n,)."""
    x = np.asarray(x, np.float64)
    sparse = -np.abs(x[:, 2:]) / SPARSE_SCALE - np.log(2 * SPARSE_SCALE)
    return PLANAR[name].log_prob(x[:, :2]) + sparse.sum(1)
