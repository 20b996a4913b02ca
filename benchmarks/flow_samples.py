"""The learned flows side by side, trained from samples: sparse transformer and neural ODE.

From the repository root::

    python -m benchmarks.flow_samples [--dims 2 10 50] [--seeds 3] [--out FOLDER]

Both get the same network, data, batches, optimiser and number of gradient steps; rates and prox
times start from the data's spread alone, the same rule for all coordinates. The ODE is solved with
more evaluations of the drift than the transformer has layers: with as few, training finds the
solver's error and its likelihood is no density's. Judged on fresh samples: KL divergence (the
targets' densities are known), sliced W2 and energy distance, the share of sparse coordinates that
are close to zero. The ODE's density is judged with a finer solver, in d > 2 by Hutchinson's trace.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from benchmarks.cell import write_json
from benchmarks.flow_targets import PLANAR, SPARSE_SCALE, log_prob, sample
from benchmarks.machine import versions
from numpyro_rwpo.flow import (
    MaximumLikelihood,
    NeuralODEFlow,
    SparseTransformerFlow,
    energy_distance,
    train,
)

NUM_LAYERS, NUM_ODE_STEPS, WIDTH = 4, 6, 32
NUM_STEPS, BATCH, LEARNING_RATE = 400, 256, 0.01
NUM_TRAIN, NUM_TEST, NUM_DENSITY = 8000, 10_000, 2000
NUM_KEYS = 2048  # of the mixture that is judged; 256 in training
FINE_STEPS = 24
NEAR_ZERO = 0.1 * SPARSE_SCALE


def sliced_w2(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> float:
    """Root mean squared W2 between samples of equal size, over 100 random directions."""
    directions = rng.normal(size=(x.shape[1], 100))
    directions /= np.linalg.norm(directions, axis=0)
    difference = np.sort(x @ directions, 0) - np.sort(y @ directions, 0)
    return float(np.sqrt(np.mean(difference**2)))


_energy = jax.jit(energy_distance)
_sample = eqx.filter_jit(lambda flow, key, n: flow.sample(key, n))
_log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
_log_prob_random = eqx.filter_jit(lambda flow, x, key: flow.log_prob(x, key))


def new_flow(kind: str, data: np.ndarray, seed: int) -> Any:
    """An untrained flow, its base and layers scaled to the data."""
    dim, key = data.shape[1], jax.random.key(seed)
    base = {"location": data.mean(0), "scale": data.std(0), "rng_key": key}
    if kind == "sparse transformer":
        rate = 1 / np.abs(data).mean(0)
        return SparseTransformerFlow(dim, NUM_LAYERS, WIDTH, rate=rate, **base)
    trace = "exact" if dim == 2 else "hutchinson"
    return NeuralODEFlow(dim, NUM_ODE_STEPS, WIDTH, trace=trace, **base)


def judge(flow: Any, name: str, test: np.ndarray, seed: int) -> dict[str, float]:
    """Distances of a trained flow to the target."""
    rng, key = np.random.default_rng(seed), jax.random.key(100 + seed)
    few = test[:NUM_DENSITY]
    if isinstance(flow, SparseTransformerFlow):
        flow = flow.with_particles(key, NUM_KEYS)
        own = _log_prob(flow, few)
    elif test.shape[1] == 2:
        flow = flow.with_solver(num_steps=FINE_STEPS)
        own = _log_prob(flow, few)
    else:
        flow = flow.with_solver(num_steps=FINE_STEPS, trace="hutchinson")
        own = _log_prob_random(flow, few, key)
    ratio = log_prob(name, few) - np.asarray(own, np.float64)
    x = np.asarray(_sample(flow, jax.random.key(200 + seed), len(test)))
    return {
        "kl": float(ratio.mean()),
        "kl_error": float(ratio.std() / np.sqrt(ratio.size)),
        "sliced_w2": sliced_w2(rng, x, test),
        "energy": float(_energy(x[:NUM_DENSITY], few)),
        "near_zero": float((np.abs(x[:, 2:]) < NEAR_ZERO).mean()) if x.shape[1] > 2 else 0.0,
    }


def run(name: str, dim: int, seed: int, folder: Path | None = None) -> list[dict[str, Any]]:
    """Train and judge both flows on one target with one seed."""
    rng = np.random.default_rng(1000 + seed)
    data, held, test, other = (
        sample(name, dim, rng, n) for n in (NUM_TRAIN, 500, NUM_TEST, NUM_TEST)
    )
    rows = []
    for kind in ("sparse transformer", "neural ODE"):
        result = train(
            jax.random.key(seed),
            new_flow(kind, data, seed),
            MaximumLikelihood(),
            data,
            validation=held,
            num_steps=NUM_STEPS,
            batch_size=BATCH,
            learning_rate=LEARNING_RATE,
        )
        row = {
            "target": name,
            "dim": dim,
            "seed": seed,
            "flow": kind,
            **judge(result.flow, name, test, seed),
            "floor_w2": sliced_w2(rng, other, test),
            "true_near_zero": 1 - float(np.exp(-NEAR_ZERO / SPARSE_SCALE)),
            "monitored": (result.monitored + log_prob(name, held).mean()).tolist(),
            # The first piece may have compiled.
            "seconds_per_step": float(np.diff(result.seconds).mean() / 50),
        }
        if folder is not None and dim == 2 and seed == 0:
            flow = result.flow
            flow = flow.with_particles(jax.random.key(1), NUM_KEYS) if "sparse" in kind else flow
            x = np.asarray(_sample(flow, jax.random.key(2), 2000))
            np.save(folder / f"{name}_{kind.replace(' ', '_')}.npy", x)
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "monitored"}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--targets", nargs="+", default=list(PLANAR))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/flow"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for dim in options.dims:
        start, rows = time.perf_counter(), []
        for name in options.targets:
            for seed in range(options.seeds):
                rows += run(name, dim, seed, options.out)
        minutes = (time.perf_counter() - start) / 60
        content = {"rows": rows, "minutes": minutes, "versions": versions()}
        write_json(options.out / f"samples_{dim}.json", content)


if __name__ == "__main__":
    main()
