"""Counts what devices that share the particles of an ensemble compute and send to each other.

From the repository root::

    python -m benchmarks.devices [--out FOLDER]

Three pieces of a run on the 50-dimensional L1 logistic regression are compiled for up to 1,024
virtual devices, and not run: a *step* of transport (moments, metric, attention, flow, gradients),
an *update* of the adaptation in warm-up (a Hamiltonian sweep of one leapfrog step, and what is
learned from it), and a *refresh* in sampling (one such sweep). The operations of a device
and the bytes that it receives from others are taken from the compiled programs
(:mod:`benchmarks.communication`). These counts are the same for real devices, whereas the timings
of virtual ones, which share the cores of one machine, would be meaningless. Seconds are calculated
from a simple model, :func:`seconds`.
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
from numpyro_rwpo.dynamics.adaptation import adapt
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate
from numpyro_rwpo.dynamics.estimates import Adaptation, initial_adaptation, learn_moments, make_flow
from numpyro_rwpo.dynamics.moves import hamiltonian_sweep
from numpyro_rwpo.dynamics.settings import Settings, flows_on_trial, metric_form, num_states
from numpyro_rwpo.dynamics.transport import Progress, initial_progress, transport_step
from numpyro_rwpo.heads.registry import find_head
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.sharding import Placement, check_mesh

PROBLEM = "l1_logistic_d50"
DEVICES = (1, 8, 64, 1024)
STRONG = {"copula": 2**20, "joint": 2**17}  # particles in total
WEAK = {"copula": 2**12, "joint": 2**10}  # particles per device
# The heads differ only in the step.
PIECES = {"copula": ("step", "update", "refresh"), "joint": ("step",)}

# The model of the time: a device and its connection to the others, in round numbers.
OPERATIONS = 20e12  # single-precision operations per second in a loop over array elements
MEMORY = 2e12  # bytes per second
LINK = 50e9  # bytes per second that a device receives from the others
LATENCY = 10e-6  # seconds per message; a sum takes log2(number of devices) messages
EIGENVALUES = 1e-3  # seconds per decomposition of a 50 x 50 matrix, repeated on every device
# Number of decompositions: two for the metric, and one more for the copula.
NUM_EIGENVALUES = {
    ("copula", "step"): 3,
    ("joint", "step"): 2,
    ("copula", "update"): 2,
    ("copula", "refresh"): 0,
}


class Program(NamedTuple):
    """The posterior on its devices, and the settings with which the kernel would sample it."""

    target: Target
    settings: Settings

    def step(self, ensemble: Ensemble, adaptation: Adaptation, progress: Progress) -> Any:
        """One iteration of transport."""
        learned = learn_moments(adaptation, ensemble, self.target)
        moved, progress = transport_step(
            ensemble,
            progress,
            learned.preconditioner,
            self.target,
            attention=self.settings.attention,
            relative_time=0.1,
        )
        return evaluate(moved.particles, self.target), learned, progress

    def refresh(self, ensemble: Ensemble, adaptation: Adaptation, progress: Progress) -> Any:
        """One Hamiltonian sweep of one leapfrog step."""
        flow = make_flow(self.settings.flows[0], adaptation, self.target)
        step_size, num_steps = jnp.full((), math.pi / 2), jnp.ones((), int)
        key = jax.random.key(0)
        return hamiltonian_sweep(key, ensemble, flow, step_size, num_steps, self.target)

    def update(self, ensemble: Ensemble, adaptation: Adaptation, progress: Progress) -> Any:
        """One iteration of warm-up after transport."""
        key = jax.random.key(0)
        return adapt(key, ensemble, adaptation, self.target, self.settings, target_accept_prob=0.8)


def settings_of(num_particles: int, dim: int, attention: str, placement: Placement) -> Settings:
    """What the kernel would resolve for a posterior with a Laplace prior."""
    dense, rank = metric_form(num_particles, dim, "auto")
    return Settings(
        num_warmup=1000,
        num_particles=num_particles,
        num_states=num_states(num_particles),
        radius=2.0,
        attention=find_head(attention),
        corrected=True,
        dense=dense,
        rank=rank,
        flows=flows_on_trial(dense, rank, True, "auto"),
        inverse_temperature=1.0,
        placement=placement,
    )


def count(
    source: Any, num_devices: int, num_particles: int, attention: str, dim: int
) -> dict[str, Any]:
    """Compile the pieces of one run and count.

    Args:
        source: The model with its data.
        num_devices: Number of devices that share the particles.
        num_particles: Number of particles in total.
        attention: Name of the head.
        dim: Number of parameters.

    Returns:
        For each piece: bytes and number of collectives by kind, operations and memory traffic of
        one device.
    """
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("particles",))
    placement = check_mesh(mesh, None)
    settings = settings_of(num_particles, dim, attention, placement)
    target = (
        source.bind((), device_kwargs(load_problem(PROBLEM))).target()._replace(placement=placement)
    )
    program = Program(target, settings)

    def placed(shapes: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    rows = jax.ShapeDtypeStruct((num_particles, dim), np.dtype("float32"))
    scalars = jax.ShapeDtypeStruct((num_particles,), np.dtype("float32"))
    ensemble = placed(Ensemble(rows, scalars, rows), PartitionSpec("particles"))
    learned = jax.eval_shape(lambda: initial_adaptation(dim, rows.dtype, settings))
    progress = jax.eval_shape(lambda: initial_progress(rows.dtype))
    arguments = (ensemble, *placed((learned, progress), PartitionSpec()))
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
    """Calculated seconds of a piece: computing, then sending, without any overlap.

    Computing takes the time of the counted operations or of the counted memory traffic, whichever
    is longer. The pairs of particles of the joint head are in loops that the compiler counts only
    once, so they are added: a distance, an exponential (10) and a weighted sum for each. A
    collective takes its bytes over the bandwidth of the link plus a latency, and a sum takes a
    latency for each of its logarithmic number of stages.
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
    neighbors = counted["rounds"].get("collective-permute", 0)
    sums = sum(counted["rounds"].values()) - neighbors
    latency = LATENCY * (sums * math.log2(number) + neighbors)
    return compute + sum(counted["bytes"].values()) / LINK + latency


def table(records: list[dict[str, Any]], weak: bool) -> str:
    """The Markdown table, with one row for each piece, head and number of devices."""
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
    header = ["piece", "devices", "particles", "10⁶ operations per device"]
    header += ["bytes received per device", "collectives", "ms (calculated)", "efficiency"]
    return markdown_table(header, rows)


def page(records: list[dict[str, Any]]) -> str:
    """Both tables."""
    return "\n\n".join(
        [
            "Strong scaling: the same number of particles on more devices.",
            table(records, weak=False),
            "Weak scaling: the same number of particles on every device.",
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
                records.append(
                    count(kernel._programs.source, number, num_particles, attention, dim)
                )
    write_json(args.out / "devices.json", {"versions": versions(), "records": records})
    (args.out / "devices.md").write_text(page(records) + "\n")
    print(page(records))


if __name__ == "__main__":
    main()
