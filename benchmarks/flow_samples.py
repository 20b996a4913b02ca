"""Compares the learned flows, trained from samples: sparse transformer and neural ODE.

From the repository root::

    python -m benchmarks.flow_samples [--dims 2 10 50] [--targets NAMES] [--seeds 3] [--out FOLDER]
    python -m benchmarks.flow_samples --report    # table and figures from stored results

Both flows get the same network, data, batches, loss, optimizer, learning rate and number of
gradient steps. Rates and prox times are initialized from the moments of each coordinate alone, by
the same rule for all targets. The loss is minus the log likelihood, plus an energy distance in the
plane, because the likelihood alone moves hardly any mass from one mode to another once no kernel
reaches both. The ODE is solved with three times as many evaluations of the drift as the transformer
makes: with the same number, training exploits the error of the solver and its likelihood is not
that of a density. Results that are stored in the file are not measured again. The learning rate,
the weight of the energy distance and the rule for prox times were chosen in pilot runs (seed 0,
eight normals, rings and pinwheel).

The flows are judged on fresh samples: KL divergence (the densities of the targets are known),
sliced W2, energy distance and the share of sparse coordinates that are close to zero. The density
of the ODE is judged with a finer solver, and in d > 2 by Hutchinson's trace.
"""

import argparse
import json
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import kurtosis

from benchmarks.cell import write_json
from benchmarks.flow_targets import PLANAR, SPARSE_SCALE, log_prob, sample
from benchmarks.machine import versions
from benchmarks.report import markdown_table
from numpyro_rwpo.diagnostics.plots.style import COLORS
from numpyro_rwpo.flow import (
    EnergyDistance,
    MaximumLikelihood,
    NeuralODEFlow,
    SparseTransformerFlow,
    TrainingResult,
    energy_distance,
    train,
)

NUM_LAYERS, NUM_ODE_STEPS, WIDTH = 4, 6, 32
NUM_STEPS, BATCH = 800, 256
LEARNING_RATE = 0.01
# Used in the plane only: it doubles the cost of a step, and with many coordinates it is hardly
# sensitive to the two that have structure.
ENERGY_WEIGHT = 3.0
NUM_TRAIN, NUM_TEST, NUM_DENSITY = 8000, 10_000, 2000
NUM_PARTICLES, NUM_KEYS = 512, 8192  # keys of the mixture in training, and when it is judged
FINE_STEPS = 24
NEAR_ZERO = 0.1 * SPARSE_SCALE


@dataclass(frozen=True)
class LikelihoodAndEnergy:
    """Maximum likelihood with its regularizers, plus a multiple of the energy distance."""

    weight: float

    def __call__(self, flow: Any, rng_key: jax.Array, data: jax.Array) -> jax.Array:
        """The loss of a batch (n, dim)."""
        key_likelihood, key_energy = jax.random.split(rng_key)
        loss = MaximumLikelihood()(flow, key_likelihood, data)
        if self.weight:
            energy = EnergyDistance(kinetic=0.0, hjb=0.0)
            loss += self.weight * energy(flow, key_energy, data)
        return loss


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


def prox_times(data: np.ndarray) -> np.ndarray:
    """Initial T of every coordinate of data (n, dim), (dim,).

    A single kernel can represent a Laplace variable. A coordinate with heavier tails than a normal
    is assumed to be one, so its T is its variance. Any other coordinate is assumed to have
    structure, for which kernels must be narrower.
    """
    return np.where(kurtosis(data) > 0, 1.0, 0.1) * data.var(0)


def train_on(kind: str, data: np.ndarray, held: np.ndarray, seed: int) -> TrainingResult:
    """Train a flow on data (n, dim) and keep the one with the best loss on held-out data."""
    return train(
        jax.random.key(seed),
        new_flow(kind, data, seed),
        LikelihoodAndEnergy(ENERGY_WEIGHT if data.shape[1] == 2 else 0.0),
        data,
        validation=held,
        num_steps=NUM_STEPS,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
    )


def new_flow(kind: str, data: np.ndarray, seed: int) -> Any:
    """An untrained flow whose base and layers are scaled to data (n, dim)."""
    dim, key = data.shape[1], jax.random.key(seed)
    base = {"location": data.mean(0), "scale": data.std(0), "rng_key": key}
    if kind == "sparse transformer":
        rate = 2 / np.abs(data).mean(0)  # a kernel contains only half of the prior
        return SparseTransformerFlow(
            dim,
            NUM_LAYERS,
            WIDTH,
            rate,
            prox_times(data),
            num_particles=NUM_PARTICLES,
            **base,
        )
    trace = "exact" if dim == 2 else "hutchinson"
    return NeuralODEFlow(dim, NUM_ODE_STEPS, WIDTH, trace=trace, **base)


def judge(
    flow: Any, test: np.ndarray, truth: np.ndarray, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Distances of a trained flow to the target, and the same number of draws as test points.

    Args:
        flow: A flow.
        test: Held-out samples, (n, dim).
        truth: Log density of the target at the first NUM_DENSITY of them.
        seed: Seed of draws and directions.
    """
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
    ratio = truth - np.asarray(own, np.float64)
    x = np.asarray(_sample(flow, jax.random.key(200 + seed), len(test)))
    measures = {
        "kl": float(ratio.mean()),
        "kl_error": float(ratio.std() / np.sqrt(ratio.size)),
        "sliced_w2": sliced_w2(rng, x, test),
        "energy": float(_energy(x[:NUM_DENSITY], few)),
    }
    return measures, x


def run(name: str, dim: int, seed: int, kinds: list[str]) -> list[dict[str, Any]]:
    """Train and judge flows on one target with one seed."""
    rng = np.random.default_rng(1000 + seed)
    data, held, test, other = (
        sample(name, dim, rng, n) for n in (NUM_TRAIN, 500, NUM_TEST, NUM_TEST)
    )
    rows = []
    for kind in kinds:
        result = train_on(kind, data, held, seed)
        measures, x = judge(result.flow, test, log_prob(name, test[:NUM_DENSITY]), seed)
        row = {
            "target": name,
            "dim": dim,
            "seed": seed,
            "flow": kind,
            **measures,
            "near_zero": float((np.abs(x[:, 2:]) < NEAR_ZERO).mean()) if dim > 2 else 0.0,
            "floor_w2": sliced_w2(rng, other, test),
            "true_near_zero": 1 - float(np.exp(-NEAR_ZERO / SPARSE_SCALE)),
            "monitored": (result.monitored + log_prob(name, held).mean()).tolist(),
            # The first piece may have compiled.
            "seconds_per_step": float(np.median(np.diff(result.seconds)) / 50),
        }
        if seed == 0:  # for the figure
            x = np.asarray(_sample(result.flow, jax.random.key(2), 600))[:, :2]
            row["draws"] = x.round(3).astype(float).tolist()
        rows.append(row)
        print(
            json.dumps({k: v for k, v in row.items() if k not in ("monitored", "draws")}),
            flush=True,
        )
    return rows


KINDS = ("sparse transformer", "neural ODE")
MEASURES = {"kl": "KL", "sliced_w2": "sliced W2", "energy": "energy distance"}


def spread(values: list[float]) -> str:
    """Mean ± standard deviation as text; a single value is shown alone."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of both flows, and the ratio of the means."""
    header = ["dim, target", *(f"{m}: {k}" for m in MEASURES.values() for k in (*KINDS, "ratio"))]
    header.append("sliced W2: fresh draws of the target")
    header += [f"near zero: {k}" for k in (*KINDS, "truth")] + [f"ms per step: {k}" for k in KINDS]
    lines = []
    for dim, name in dict.fromkeys((row["dim"], row["target"]) for row in rows):
        cell = [row for row in rows if (row["dim"], row["target"]) == (dim, name)]
        both = {kind: [row for row in cell if row["flow"] == kind] for kind in KINDS}
        line = [f"{dim}, {name}"]
        for measure in MEASURES:
            values = [[row[measure] for row in both[kind]] for kind in KINDS]
            ratio = np.mean(values[0]) / np.mean(values[1])
            # An unbiased distance between two nearly equal samples is noise around 0: no ratio.
            is_noise = measure == "energy" and np.min(np.mean(values, 1)) < 1e-3
            line += [*map(spread, values), "–" if is_noise else f"{ratio:.2f}"]
        line.append(spread([row["floor_w2"] for row in both[KINDS[0]]]))
        for kind in KINDS:
            share = np.mean([row["near_zero"] for row in both[kind]])
            line.append(f"{share:.3f}" if dim > 2 else "–")
        line.append(f"{cell[0]['true_near_zero']:.3f}" if dim > 2 else "–")
        line += [f"{1e3 * min(r['seconds_per_step'] for r in both[kind]):.0f}" for kind in KINDS]
        lines.append(line)
    return markdown_table(header, lines)


def draw_losses(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot held-out loss above the target's entropy against gradient steps, one panel per dim."""
    dims = sorted({row["dim"] for row in rows})
    figure = Figure(figsize=(4 * len(dims), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, dim in zip(np.ravel(figure.subplots(1, len(dims))), dims, strict=True):
        for kind, color in zip(KINDS, COLORS[:2], strict=True):
            for row in rows:
                if (row["dim"], row["flow"]) == (dim, kind):
                    steps = 50 * np.arange(1, len(row["monitored"]) + 1)
                    axes.plot(steps, row["monitored"], color=color, alpha=0.5, linewidth=1)
            axes.plot([], [], color=color, label=kind)
        axes.set_yscale("log")
        axes.set_title(f"d = {dim}", fontsize="medium")
        axes.set_xlabel("gradient steps")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.supylabel("held-out loss above entropy (nats)", fontsize="medium")
    figure.savefig(path, dpi=110)


def draw_samples(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the first two coordinates of the target and of both flows, three rows per dim."""
    draws = {(r["dim"], r["target"], r["flow"]): r["draws"] for r in rows if "draws" in r}
    dims, names = (list(dict.fromkeys(key[k] for key in draws)) for k in (0, 1))
    labels = ("target", *KINDS)
    figure = Figure(figsize=(1.9 * len(names), 1.6 * 3 * len(dims)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3 * len(dims), len(names), squeeze=False)
    for line, (dim, label) in enumerate(product(dims, labels)):
        for axes, name in zip(grid[line], names, strict=True):
            truth = sample(name, dim, np.random.default_rng(0), 600)
            x = np.asarray(draws[dim, name, label]) if label in KINDS else truth
            color = dict(zip(labels, ("0.2", *COLORS), strict=False))[label]
            axes.plot(x[:, 0], x[:, 1], ".", color=color, ms=1.5)
            axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        grid[line, 0].set_ylabel(f"{label}, d = {dim}", fontsize="x-small")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize="small")
    figure.savefig(path, dpi=110)


def report(folder: Path) -> None:
    """Write the table and figures for all dimensions measured."""
    files = sorted(folder.glob("flow_samples_*.json"), key=lambda path: int(path.stem[13:]))
    rows = [row for path in files for row in json.loads(path.read_text())["rows"]]
    rows.sort(key=lambda row: (row["dim"], list(PLANAR).index(row["target"])))
    (folder / "flow_samples.md").write_text(table(rows) + "\n")
    draw_losses(rows, folder / "flow_losses.png")
    draw_samples(rows, folder / "flow_draws.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--targets", nargs="+", default=list(PLANAR))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.report:
        report(options.out)
        return
    for dim in options.dims:
        path = options.out / f"flow_samples_{dim}.json"
        content: dict[str, Any] = {"rows": [], "minutes": 0.0}
        if path.exists():
            content = json.loads(path.read_text())
        done = {(row["target"], row["seed"], row["flow"]) for row in content["rows"]}
        for name, seed in product(options.targets, range(options.seeds)):
            kinds = [kind for kind in KINDS if (name, seed, kind) not in done]
            if kinds:
                start = time.perf_counter()
                content["rows"] += run(name, dim, seed, kinds)
                content["minutes"] += (time.perf_counter() - start) / 60
                write_json(path, content | {"versions": versions()})
    report(options.out)


if __name__ == "__main__":
    main()
