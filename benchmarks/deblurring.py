"""Deblurring of photographs with total variation: the model of the gallery's example.

From the repository root::

    python -m benchmarks.deblurring [--seeds NUMBER ...] [--size PIXELS]

prints, for photographs blurred with noise of each seed, how many of the true pixels lie in the
posterior's intervals of 50% and 90%. :mod:`benchmarks.structured` compares samplers on the first.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO
from numpyro_rwpo.distributions import TotalVariation

SIZE, BLUR, NOISE = 64, 1.5, 0.02  # pixels, pixels, and parts of the range from black to white
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


def coverage(truth: np.ndarray, seed: int, num_samples: int = 250) -> dict[str, float]:
    """Shares of the true pixels in central intervals of a run, and errors before and after."""
    blur, data = simulated(truth, seed)
    begin = time.perf_counter()
    mcmc = MCMC(
        RWPO(model, **OPTIONS),
        num_warmup=NUM_WARMUP,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), blur, data)
    draws = np.asarray(mcmc.get_samples()["image"])
    low, first, third, high = np.quantile(draws, [0.05, 0.25, 0.75, 0.95], axis=0)

    def error(image: np.ndarray) -> float:
        return float(np.sqrt(np.mean((image - truth) ** 2)))

    return {
        "seed": seed,
        "in 50%": float(np.mean((first < truth) & (truth < third))),
        "in 90%": float(np.mean((low < truth) & (truth < high))),
        "RMSE of the data": error(data),
        "RMSE of the mean": error(draws.mean(0)),
        "sd": float(draws.std(0).mean()),
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    """Print the coverage of every photograph with every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", type=int, default=SIZE, metavar="PIXELS")
    args = parser.parse_args()
    for photo in PHOTOGRAPHS:
        truth = photograph(*photo, size=args.size)
        for seed in args.seeds:
            print(photo, {k: round(v, 3) for k, v in coverage(truth, seed).items()}, flush=True)


if __name__ == "__main__":
    main()
