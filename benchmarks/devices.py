"""What devices that share the particles of an ensemble compute and send, counted.

From the repository root::

    python -m benchmarks.devices [--out FOLDER]

Three pieces of a run on the 50-dimensional L1 logistic regression are compiled for up to 1,024
virtual devices, and not run: a *step* of transport (moments, metric, attention, flow, gradients),
an *update* of warm-up's adaptation (a pair of Hamiltonian sweeps of one leapfrog step, and what is
learnt from it), and a *refresh* in sampling (one such sweep). Operations of a device and bytes that
it gets from others are read off the compiled programs (:mod:`benchmarks.communication`). They are
those of real devices; times of virtual ones, which share the cores of one machine, would say
nothing. Seconds are a model on paper, :func:`seconds`.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.cell import write_json
from benchmarks.communication import traffic
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.samplers.protocol import device_kwargs
from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics.adaptation import (
    Adaptation,
    Candidates,
    SweepPair,
    Turn,
    initial_adaptation,
    learn_moments,
    learn_sweeps,
    replace_hopeless,
    tuning,
)
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate
from numpyro_rwpo.dynamics.hamiltonian import Refresh, sweep
from numpyro_rwpo.dynamics.settings import make_candidates
from numpyro_rwpo.dynamics.transport import Flow, initial_flow, transport_step
from numpyro_rwpo.heads.registry import find_head
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.sharding import check_mesh

PROBLEM = "l1_logistic_d50"
DEVICES = (1, 8, 64, 1024)
STRONG = {"copula": 2**20, "joint": 2**17}  # particles in all
WEAK = {"copula": 2**12, "joint": 2**10}  # particles a device
# The heads differ in the step alone.
PIECES = {"copula": ("step", "update", "refresh"), "joint": ("step",)}

# The model on paper: a device in round numbers, and what joins it to others.
OPERATIONS = 20e12  # single-precision operations a second that a loop over array elements reaches
MEMORY = 2e12  # bytes a second
LINK = 50e9  # bytes a second that a device gets from the others
LATENCY = 10e-6  # seconds of sending to one other device; a sum takes the logarithm of their number
EIGENVALUES = 1e-3  # seconds of one decomposition of a 50 x 50 matrix, on every device the same
# Of the metric twice; of the copula once more.
NUM_EIGENVALUES = {
    ("copula", "step"): 3,
    ("joint", "step"): 2,
    ("copula", "update"): 2,
    ("copula", "refresh"): 0,
}


class Program(NamedTuple):
    """The posterior on its devices, and how the kernel would sample it."""

    target: Target
    candidates: Candidates
    attention: str

    def step(self, ensemble: Ensemble, adaptation: Adaptation, flow: Flow) -> Any:
        """One iteration of transport."""
        update = jnp.array(-1)
        learnt = learn_moments(adaptation, update, ensemble, self.target, self.candidates)
        metric, options = learnt.preconditioner, {"attention": find_head(self.attention)}
        moved, flow = transport_step(
            ensemble, flow, metric, self.target, relative_time=0.1, **options
        )
        return evaluate(moved.particles, self.target), learnt, flow

    def refresh(self, ensemble: Ensemble, adaptation: Adaptation, flow: Flow) -> Any:
        """One Hamiltonian sweep of one leapfrog step."""
        turn = Turn(jnp.zeros((), int), *jnp.zeros((2,), bool))
        tuned = tuning(adaptation, turn, self.target, self.candidates, jnp.array(True))
        tuned = tuned._replace(step_size=jnp.full((), math.pi / 2))
        return sweep(jax.random.key(0), ensemble, self.target, tuned)

    def update(self, ensemble: Ensemble, adaptation: Adaptation, flow: Flow) -> Any:
        """One iteration of warm-up after transport."""
        update, turn = jnp.array(1), Turn(jnp.zeros((), int), *jnp.zeros((2,), bool))
        adaptation = learn_moments(adaptation, update, ensemble, self.target, self.candidates)
        between, _ = self.refresh(ensemble, adaptation, flow)
        after, info = self.refresh(between, adaptation, flow)
        pair = SweepPair(ensemble, between, after, Refresh(*info))
        learnt = learn_sweeps(
            adaptation, update, turn, pair, self.target, self.candidates, target_accept_prob=0.8
        )
        return replace_hopeless(update, after, pair.refresh, self.target), learnt


def count(
    source: Any, num_devices: int, num_particles: int, attention: str, dim: int
) -> dict[str, Any]:
    """Compile the pieces of one run and count.

    Args:
        source: The model with its data.
        num_devices: That share the particles.
        num_particles: In all.
        attention: Name of the head.
        dim: Number of parameters.

    Returns:
        For each piece: bytes and number of collectives by kind, operations and memory traffic of
        one device.
    """
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("particles",))
    candidates = make_candidates(num_particles, dim, source.has_prior, "auto")
    placement = check_mesh(mesh, None)
    target = source.bind((), device_kwargs(load_problem(PROBLEM)))._replace(placement=placement)
    program = Program(target, candidates, attention)

    def placed(shapes: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    rows = jax.ShapeDtypeStruct((num_particles, dim), np.dtype("float32"))
    scalars = jax.ShapeDtypeStruct((num_particles,), np.dtype("float32"))
    ensemble = placed(Ensemble(rows, scalars, rows), PartitionSpec("particles"))
    learnt = jax.eval_shape(lambda x: initial_adaptation(x, candidates), rows)
    flow = jax.eval_shape(lambda: initial_flow(rows.dtype))
    arguments = (ensemble, *placed((learnt, flow), PartitionSpec()))
    record: dict[str, Any] = {
        "num_devices": num_devices,
        "num_particles": num_particles,
        "attention": attention,
        "dim": dim,
    }
    for name in PIECES[attention]:
        function: Callable[..., Any] = getattr(program, name)
        compiled = jax.jit(function).lower(*arguments).compile()
        counts = traffic(compiled.as_text())
        cost = compiled.cost_analysis() or {}
        record[name] = {
            "bytes": counts.always,
            "bytes_in_branches": counts.branches,
            "rounds": counts.rounds,
            "operations": float(cost["flops"]),
            "memory_traffic": float(cost["bytes accessed"]),
        }
    return record


def seconds(record: dict[str, Any], piece: str) -> float:
    """Seconds of a piece on paper: computing, then sending, nothing at the same time.

    Operations and memory traffic are the counted ones, whichever takes longer. The joint head's
    pairs of particles are in loops that the compiler counts once and are added: a distance, an
    exponential (10) and a weighted sum for each. A collective takes its bytes over the link's
    bandwidth and a latency; those that end in a sum, its logarithmic number of stages.
    """
    counted, number = record[piece], record["num_devices"]
    operations = counted["operations"]
    if record["attention"] == "joint" and piece == "step":
        pairs = record["num_particles"] ** 2 / number
        operations += pairs * (3 * record["dim"] + 10 + 2 * (record["dim"] + 1))
    compute = max(operations / OPERATIONS, counted["memory_traffic"] / MEMORY)
    compute += NUM_EIGENVALUES[record["attention"], piece] * EIGENVALUES
    if number == 1:
        return compute
    neighbours = counted["rounds"].get("collective-permute", 0)
    sums = sum(counted["rounds"].values()) - neighbours
    latency = LATENCY * (sums * math.log2(number) + neighbours)
    return compute + sum(counted["bytes"].values()) / LINK + latency


def table(records: list[dict[str, Any]], weak: bool) -> str:
    """One row for each piece, head and number of devices, as Markdown."""
    rows = []
    for attention, names in PIECES.items():
        for piece in names:
            alone = 0.0
            for record in records:
                size = WEAK[attention] * record["num_devices"] if weak else STRONG[attention]
                if (record["attention"], record["num_particles"]) != (attention, size):
                    continue
                number, counted = record["num_devices"], record[piece]
                now = seconds(record, piece)
                alone = now if number == 1 else alone
                rows.append(
                    [
                        f"{piece}, {attention}" if piece == "step" else piece,
                        f"{number:,}",
                        f"{size:,}",
                        three_digits(counted["operations"] / 1e6),
                        f"{sum(counted['bytes'].values()):,}",
                        f"{sum(counted['rounds'].values()):,}",
                        three_digits(1e3 * now),
                        f"{alone / now / (1 if weak else number):.0%}",
                    ]
                )
    header = ["piece", "devices", "particles", "10⁶ operations a device", "bytes a device gets"]
    return markdown_table([*header, "collectives", "ms on paper", "efficiency"], rows)


def page(records: list[dict[str, Any]]) -> str:
    """Both tables."""
    return "\n\n".join(
        [
            "Strong scaling: the same particles on more devices.",
            table(records, weak=False),
            "Weak scaling: as many particles on every device.",
            table(records, weak=True),
        ]
    )


def main() -> None:
    """Count and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    problem = load_problem(PROBLEM)
    kernel = RWPO(problem.model)
    state = kernel.init(jax.random.key(0), 40, None, (), device_kwargs(problem))
    records = []
    for attention in PIECES:
        for number in DEVICES:
            for num_particles in dict.fromkeys((STRONG[attention], WEAK[attention] * number)):
                print(f"{attention}, {number} devices, {num_particles:,} particles", flush=True)
                dim = state.ensemble.particles.shape[1]
                records.append(count(kernel._source, number, num_particles, attention, dim))
    write_json(args.out / "devices.json", {"versions": versions(), "records": records})
    (args.out / "devices.md").write_text(page(records) + "\n")
    print(page(records))


if __name__ == "__main__":
    main()
