"""Time and communication of one ensemble whose particles several devices share.

From the repository root::

    python -m benchmarks.devices [--out FOLDER]

Three pieces of a run on the 50-dimensional L1 logistic regression: a *step* of transport (moments,
metric, attention, flow, gradients), an *update* of warm-up's adaptation (a pair of Hamiltonian
sweeps of one leapfrog step, and what is learnt from it), and a *refresh* in sampling (one such
sweep). Devices are virtual ones of this CPU, a fresh process for each number of them. Bytes are
those that real devices would get, counted from the compiled program, and so are operations of a
device. Times say only that sharing costs little, because all virtual devices share the same cores.
A model on paper, :func:`paper_table`, takes it from there.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.cell import write_json
from benchmarks.communication import traffic
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import load_results, run_process
from benchmarks.samplers.protocol import device_kwargs
from numpyro_rwpo import RWPO
from numpyro_rwpo.correction import Refresh, sweep
from numpyro_rwpo.ensemble import Ensemble, evaluate
from numpyro_rwpo.transport import Flow, transport_step
from numpyro_rwpo.warmup import (
    Adaptation,
    SweepPair,
    Turn,
    learn_moments,
    learn_sweeps,
    replace_stuck,
    tuning,
)

PROBLEM = "l1_logistic_d50"
DEVICES = (1, 2, 4, 8)
STRONG = {"copula": 16_384, "joint": 4_096}  # particles in all
WEAK = {"copula": 4_096, "joint": 1_024}  # particles a device
PIECES = ("step", "update", "refresh")
NUM_REPEATS = 7
LIMIT_SECONDS = 600.0

# The model on paper: a device in round numbers, and what joins it to others.
OPERATIONS = 20e12  # single-precision operations a second that a loop over array elements reaches
MEMORY = 2e12  # bytes a second
LINK = 50e9  # bytes a second that a device gets from the others
LATENCY = 10e-6  # seconds of sending to one other device; a sum takes the logarithm of their number
EIGENVALUES = 1e-3  # seconds of one decomposition of a 50 x 50 matrix, on every device the same
NUM_EIGENVALUES = {"step": 3, "update": 2, "refresh": 0}  # metric twice, copula once
PAPER_DEVICES = (1, 8, 64, 256, 1024)
PAPER_PARTICLES = {"copula": 2**20, "joint": 2**17}
PAPER_WEAK = {"copula": 2**12, "joint": 2**10}


def pieces(kernel: RWPO, source: Any, kwargs: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The three pieces of a run as functions of ensemble, adaptation, flow and key."""
    settings = kernel.settings
    assert settings is not None
    target = source.bind((), kwargs)._replace(placement=settings.placement)
    turn = Turn(jnp.zeros((), int), jnp.zeros((), bool))
    candidates = settings.candidates

    def step(ensemble: Ensemble, adaptation: Adaptation, flow: Flow, key: jax.Array) -> Any:
        adaptation = learn_moments(adaptation, jnp.array(-1), ensemble, target, candidates)
        moved, flow = transport_step(
            ensemble,
            flow,
            adaptation.preconditioner,
            target,
            attention=settings.attention,
            relative_time=settings.relative_prox_time,
        )
        return evaluate(moved.particles, target), adaptation, flow

    def refresh(ensemble: Ensemble, adaptation: Adaptation, flow: Flow, key: jax.Array) -> Any:
        tuned = tuning(adaptation, turn, target, candidates, jnp.array(True))
        tuned = tuned._replace(step_size=jnp.full((), math.pi / 2))
        return sweep(key, ensemble, target, tuned)

    def update(ensemble: Ensemble, adaptation: Adaptation, flow: Flow, key: jax.Array) -> Any:
        adaptation = learn_moments(adaptation, jnp.array(1), ensemble, target, candidates)
        between, _ = refresh(ensemble, adaptation, flow, key)
        after, info = refresh(between, adaptation, flow, jax.random.fold_in(key, 1))
        pair = SweepPair(ensemble, between, after, Refresh(*info))
        learnt = learn_sweeps(adaptation, jnp.array(1), turn, pair, target, candidates, 0.8)
        return replace_stuck(jnp.array(1), after, pair.refresh, target), learnt

    return {"step": step, "update": update, "refresh": refresh}


def measure(num_devices: int, num_particles: int, attention: str) -> dict[str, Any]:
    """Compile and time the pieces in this process.

    Args:
        num_devices: That share the particles.
        num_particles: In all.
        attention: Name of the head.

    Returns:
        For each piece: bytes and number of collectives by kind, operations and memory traffic of
        one device, and seconds.
    """
    problem = load_problem(PROBLEM)
    kwargs = device_kwargs(problem)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("particles",))
    kernel = RWPO(problem.model, num_particles=num_particles, attention=attention, mesh=mesh)
    state = kernel.init(jax.random.key(0), 40, None, (), kwargs)
    assert kernel.settings is not None
    source = kernel._source
    assert source is not None
    target = source.bind((), kwargs)._replace(placement=kernel.settings.placement)
    ensemble = jax.jit(lambda x: evaluate(x, target))(0.1 * state.ensemble.particles)
    arguments = (ensemble, state.adaptation, state.flow, state.rng_key)
    record: dict[str, Any] = {
        "num_devices": num_devices,
        "num_particles": num_particles,
        "attention": attention,
        "dim": int(ensemble.particles.shape[1]),
        "status": "complete",
        "versions": versions(),
    }
    for name, function in pieces(kernel, source, kwargs).items():
        compiled = jax.jit(function).lower(*arguments).compile()
        counts = traffic(compiled.as_text())
        cost = compiled.cost_analysis() or {}
        jax.block_until_ready(compiled(*arguments))
        seconds = []
        for _ in range(NUM_REPEATS):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds.append(time.perf_counter() - begin)
        record[name] = {
            "bytes": counts.always,
            "bytes_in_branches": counts.branches,
            "rounds": counts.rounds,
            "operations": float(cost["flops"]),
            "memory_traffic": float(cost["bytes accessed"]),
            "seconds": float(np.median(seconds)),
        }
    return record


# --------------------------------------------------------------------------------------- tables


def scaling_table(records: Iterable[dict[str, Any]], sizes: dict[str, int], weak: bool) -> str:
    """One row for each head and number of devices, as Markdown."""
    chosen = {(r["attention"], r["num_devices"], r["num_particles"]): r for r in records}
    rows = []
    for attention, size in sizes.items():
        for number in DEVICES:
            num_particles = size * number if weak else size
            record = chosen[attention, number, num_particles]
            row = [attention, f"{number}", f"{num_particles:,}"]
            if record["status"] != "complete":
                rows.append([*row, record["reason"], *[""] * 6])
                continue
            for measured in (record[name] for name in PIECES):
                row += [f"{sum(measured['bytes'].values()):,}"]
            row += [three_digits(record[name]["operations"] / 1e6) for name in ("step", "refresh")]
            row += [three_digits(1e3 * record[name]["seconds"]) for name in PIECES]
            rows.append(row)
    header = ["head", "devices", "particles"]
    header += [f"bytes {name}" for name in PIECES]
    header += ["10⁶ operations a device, step", "refresh"]
    header += [f"ms {name}, shared cores" for name in PIECES]
    return markdown_table(header, rows)


class Line(NamedTuple):
    """``fixed + slope * x``, through two points."""

    fixed: float
    slope: float

    @classmethod
    def through(cls, x1: float, y1: float, x2: float, y2: float) -> "Line":
        """The line through two points."""
        slope = (y2 - y1) / (x2 - x1)
        return cls(y1 - slope * x1, slope)

    def __call__(self, x: float) -> float:
        """Its value, at least 0."""
        return max(self.fixed + self.slope * x, 0.0)


def paper_seconds(
    records: list[dict[str, Any]], attention: str, piece: str
) -> Callable[[int, int], float]:
    """Seconds of a piece as a function of numbers of devices and of particles in all.

    Operations, memory traffic and bytes sent are lines through what was counted; what a line
    through one device's counts leaves at no particles is work that every device does. The joint
    head's pairs of particles, which are in loops that the compiler's count sees once, are added:
    the counted operations a pair are those of a distance, an exponential and a weighted sum.
    """
    found = {
        (r["num_devices"], r["num_particles"]): r for r in records if r["attention"] == attention
    }
    small, large = WEAK[attention], STRONG[attention]
    dim = records[0]["dim"]

    def of_one(key: str) -> Line:
        low, high = (found[1, n][piece][key] for n in (small, large))
        return Line.through(small, low, large, high)

    last = DEVICES[-1]
    first, second = found[last, large][piece], found[last, small * last][piece]
    sent = Line.through(
        large, sum(first["bytes"].values()), small * last, sum(second["bytes"].values())
    )
    operations, memory_traffic = of_one("operations"), of_one("memory_traffic")
    permutes = first["rounds"].get("collective-permute", 0) / last
    sums = sum(first["rounds"].values()) - permutes * last

    def seconds(num_devices: int, num_particles: int) -> float:
        share = num_particles / num_devices
        counted = operations(share)
        if attention == "joint" and piece == "step":
            counted += share * num_particles * (3 * dim + 2 * (dim + 1) + 10)
        compute = max(counted / OPERATIONS, memory_traffic(share) / MEMORY)
        compute += NUM_EIGENVALUES[piece] * EIGENVALUES
        if num_devices == 1:
            return compute
        latency = LATENCY * (sums * math.log2(num_devices) + permutes * num_devices)
        return compute + sent(num_particles) / LINK + latency

    return seconds


def paper_table(records: list[dict[str, Any]]) -> str:
    """What the model says up to 1,024 devices: strong and weak scaling, as Markdown."""
    rows = []
    for attention in STRONG:
        models = {piece: paper_seconds(records, attention, piece) for piece in PIECES}
        for number in PAPER_DEVICES:
            strong, weak = PAPER_PARTICLES[attention], PAPER_WEAK[attention] * number
            row = [attention, f"{number:,}", f"{strong:,}"]
            for model in models.values():
                now = model(number, strong)
                efficiency = model(1, strong) / (number * now)
                row.append(f"{three_digits(1e3 * now)} ({efficiency:.0%})")
            row.append(f"{weak:,}")
            row += [three_digits(1e3 * model(number, weak)) for model in models.values()]
            rows.append(row)
    header = ["head", "devices", "particles"]
    header += [f"ms {piece} (efficiency)" for piece in PIECES]
    header += ["particles, weak", *[f"ms {piece}" for piece in PIECES]]
    return markdown_table(header, rows)


def page(records: list[dict[str, Any]]) -> str:
    """All tables."""
    return "\n\n".join(
        [
            "Strong scaling: the same particles on more devices.",
            scaling_table(records, STRONG, weak=False),
            "Weak scaling: as many particles on every device.",
            scaling_table(records, WEAK, weak=True),
            "On paper.",
            paper_table(records),
        ]
    )


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--worker", nargs=4, metavar=("DEVICES", "PARTICLES", "HEAD", "FILE"))
    args = parser.parse_args()
    if args.worker:
        number, num_particles, attention, file = args.worker
        write_json(Path(file), measure(int(number), int(num_particles), attention))
        return
    folder = args.out / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("XLA_FLAGS", "")
    for attention in STRONG:
        for number in DEVICES:
            for num_particles in {STRONG[attention], WEAK[attention] * number}:
                path = folder / f"devices--{attention}--{number}--{num_particles}.json"
                if path.exists():
                    continue
                flag = f"--xla_force_host_platform_device_count={number}"
                os.environ["XLA_FLAGS"] = f"{before} {flag}".strip()
                worker = [str(number), str(num_particles), attention, str(path)]
                record = {
                    "num_devices": number,
                    "num_particles": num_particles,
                    "attention": attention,
                }
                run_process(
                    ["benchmarks.devices", "--worker", *worker],
                    path,
                    limit=LIMIT_SECONDS,
                    record=record,
                )
                print(path.stem, flush=True)
    records = load_results(folder)
    write_json(args.out / "devices.json", {"records": records})
    (args.out / "devices.md").write_text(page(records) + "\n")
    print(page(records))


if __name__ == "__main__":
    main()
