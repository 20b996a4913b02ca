"""Photographs reconstructed with total variation: the gallery's deblurring, and tomography.

From the repository root::

    python -m benchmarks.images [--problems NAME ...] [--seeds NUMBER ...] [--size PIXELS]

prints, for photographs that were blurred or projected, with noise of each seed, how many of the
true pixels lie in the posterior's intervals of 50% and 90%. :mod:`benchmarks.structured` compares
samplers on the first.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO
from numpyro_rwpo.distributions import TotalVariation

SIZE, BLUR, NOISE = 64, 1.5, 0.02  # pixels, pixels, and parts of the range from black to white
# Directions of projection, and noise of a projection, which is a mean along a line.
NUM_VIEWS, PROJECTION_NOISE = 15, 0.005
OPTIONS = {"num_particles": 4}
NUM_WARMUP = 60
# Photographs that scikit-learn ships: file, first row, first column, and width of a square.
PHOTOGRAPHS = (
    ("china.jpg", 40, 130, 320),
    ("flower.jpg", 0, 120, 384),
    ("china.jpg", 100, 250, 128),
)


def photograph(file: str, row: int, column: int, width: int, size: int = SIZE) -> np.ndarray:
    """A square of a photograph in gray, averaged to (size, size), from 0 to 1."""
    from sklearn.datasets import load_sample_image

    square = load_sample_image(file).mean(2)[row : row + width, column : column + width] / 255
    return square.reshape(size, width // size, size, width // size).mean((1, 3))


def blur_matrix(size: int, width: float = BLUR) -> np.ndarray:
    """Normal kernel of standard deviation ``width`` between rows, (size, size); rows sum to 1."""
    offset = np.subtract.outer(np.arange(size), np.arange(size))
    kernel = np.exp(-0.5 * (offset / width) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def simulated(truth: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of the blur, and a noisy blurred image of the truth."""
    blur = blur_matrix(truth.shape[0])
    noise = NOISE * np.random.default_rng(seed).normal(size=truth.shape)
    return blur, (blur @ truth @ blur.T + noise).astype(np.float32)


def model(blur: Any, data: Any) -> None:
    """Isotropic total variation with latent scale, normal noise of latent size."""
    scale = numpyro.sample("scale", dist.LogNormal(jnp.log(0.05), 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.05), 1.0))
    image = numpyro.sample("image", TotalVariation(scale, data.shape, isotropic=True))
    blurred = blur @ image @ blur.T
    numpyro.sample("data", dist.Normal(blurred, noise).to_event(2), obs=data)


def projections(size: int, num_views: int = NUM_VIEWS) -> np.ndarray:
    """Matrix of parallel projections, (num_views * size, size**2), means along lines.

    A pixel's center falls between two of the ``size`` detectors of a view and is shared by them.
    """
    center = (size - 1) / 2
    row, column = np.stack(np.divmod(np.arange(size**2), size)) - center
    rays = np.zeros((num_views, size + 2, size**2), np.float32)
    for view, angle in enumerate(np.pi * np.arange(num_views) / num_views):
        place = row * np.sin(angle) + column * np.cos(angle) + center + 1
        below = np.clip(np.floor(place).astype(int), 0, size)
        share = np.clip(place - below, 0, 1)
        pixel = np.arange(size**2)
        rays[view, below, pixel] = 1 - share
        rays[view, below + 1, pixel] += share
    return rays[:, 1:-1].reshape(-1, size**2) / size


def projected(truth: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of the projections, and noisy projections of the truth."""
    rays = projections(truth.shape[0])
    noise = PROJECTION_NOISE * np.random.default_rng(seed).normal(size=rays.shape[0])
    return rays, (rays @ truth.ravel() + noise).astype(np.float32)


def tomography_model(rays: Any, data: Any) -> None:
    """The same prior; normal noise of latent size on each projection."""
    size = round(rays.shape[1] ** 0.5)
    scale = numpyro.sample("scale", dist.LogNormal(jnp.log(0.05), 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.01), 1.0))
    image = numpyro.sample("image", TotalVariation(scale, (size, size), isotropic=True))
    expected = rays @ image.reshape(size**2)
    numpyro.sample("data", dist.Normal(expected, noise).to_event(1), obs=data)


class Problem(NamedTuple):
    """A kind of data.

    Attributes:
        simulated: the true image (size, size) and a seed to the arguments of the model.
        model: a NumPyro model with the site ``image``.
    """

    simulated: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    model: Callable[..., None]


PROBLEMS = {
    "deblurring": Problem(simulated, model),
    "tomography": Problem(projected, tomography_model),
}


def coverage(
    problem: Problem, truth: np.ndarray, seed: int, num_samples: int = 250
) -> dict[str, float]:
    """Shares of the true pixels in central intervals of a run, and the error of the mean."""
    arguments = problem.simulated(truth, seed)
    begin = time.perf_counter()
    mcmc = MCMC(
        RWPO(problem.model, **OPTIONS),
        num_warmup=NUM_WARMUP,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), *arguments)
    draws = np.asarray(mcmc.get_samples()["image"])
    low, first, third, high = np.quantile(draws, [0.05, 0.25, 0.75, 0.95], axis=0)

    return {
        "seed": seed,
        "in 50%": float(np.mean((first < truth) & (truth < third))),
        "in 90%": float(np.mean((low < truth) & (truth < high))),
        "RMSE of the mean": float(np.sqrt(np.mean((draws.mean(0) - truth) ** 2))),
        "sd": float(draws.std(0).mean()),
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    """Print the coverage of every photograph with every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", type=int, default=SIZE, metavar="PIXELS")
    args = parser.parse_args()
    for name, photo, seed in itertools.product(args.problems, PHOTOGRAPHS, args.seeds):
        found = coverage(PROBLEMS[name], photograph(*photo, size=args.size), seed)
        print(name, photo, {k: round(v, 3) for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
