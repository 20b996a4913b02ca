"""Accuracy and cost of a kernel on every problem with a reference posterior.

From the repository root::

    python -m benchmarks.accuracy [names] [--kernel rwpo|nuts] [--seed SEED]

Each problem is run twice with 4 vectorised chains of 1000 kept draws, by one kernel and ``MCMC``
object where the kernel allows it; NUTS gets a new one, since its second vectorised run on one
object fails (NumPyro 0.22). One line per problem gives

- the largest error of a posterior mean, in reference standard deviations; the smallest and largest
  ratio of standard deviations; the largest rank-normalised split R-hat; the smallest bulk ESS;
- the gradient evaluations of the first run over all chains, warm-up and sampling: the sum of the
  extra field ``num_steps``; the divergent transitions among the kept draws;
- the seconds of the first run, compilation included, and those of the second.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS
from numpyro.infer.mcmc import MCMCKernel

from benchmarks.problems import PROBLEMS
from benchmarks.references import Accuracy, compare_with_reference
from numpyro_rwpo import RWPO
from tests.data.posteriordb.compare import compare
from tests.data.posteriordb.models import POSTERIORS, load_data

NUM_CHAINS = 4
NUM_SAMPLES = 1000


class Setting(NamedTuple):
    """How a kernel is run.

    Attributes:
        kernel: From a model to a kernel.
        num_warmup: Warm-up draws of every chain.
        runs_twice: Whether one object can run a second time.
        too_slow: Problems left out unless named.
    """

    kernel: Callable[..., MCMCKernel]
    num_warmup: int
    runs_twice: bool
    too_slow: tuple[str, ...] = ()


SETTINGS = {
    "rwpo": Setting(RWPO, 200, runs_twice=True),
    "nuts": Setting(NUTS, 1000, runs_twice=False, too_slow=("p_much_larger_n",)),
}


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: Problem.
        accuracy: Errors of the first run's draws.
        num_gradients: Gradient evaluations of the first run.
        num_divergences: Divergent transitions of the first run's kept draws.
        cold_seconds: Wall time of the first run.
        warm_seconds: Wall time of the second run.
    """

    name: str
    accuracy: Accuracy
    num_gradients: int
    num_divergences: int
    cold_seconds: float
    warm_seconds: float


def model_and_data(name: str) -> tuple[Callable[..., None], dict[str, Any]]:
    """Model and keyword arguments of a problem, whichever collection it is in.

    Args:
        name: Key of ``PROBLEMS`` or of posteriordb's ``POSTERIORS``.

    Returns:
        NumPyro model and its keyword arguments.
    """
    if name in PROBLEMS:
        problem = PROBLEMS[name]()
        return problem.model, problem.kwargs
    return POSTERIORS[name].model, load_data(name)


def accuracy_of(name: str, samples: dict[str, Any]) -> Accuracy:
    """Errors of draws against the reference posterior of either collection.

    Args:
        name: Key of ``PROBLEMS`` or of posteriordb's ``POSTERIORS``.
        samples: Draws grouped by chain, arrays of shape (chains, draws, ...).

    Returns:
        The worst figures over all scalar coordinates.
    """
    if name in PROBLEMS:
        return compare_with_reference(name, samples)
    result = compare(name, samples)
    return Accuracy(*(result[field] for field in Accuracy._fields))


def measure(name: str, setting: Setting, seed: int) -> Row:
    """Run one problem twice, and its warm-up once more to count the gradients.

    Args:
        name: Key of ``PROBLEMS`` or of posteriordb's ``POSTERIORS``.
        setting: Kernel and length of the warm-up.
        seed: Seed of the first run; the second uses the next one.

    Returns:
        The problem's row.
    """
    model, kwargs = model_and_data(name)

    def new_mcmc() -> MCMC:
        return MCMC(
            setting.kernel(model),
            num_warmup=setting.num_warmup,
            num_samples=NUM_SAMPLES,
            num_chains=NUM_CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )

    def timed_run(mcmc: MCMC, seed: int) -> float:
        start = time.perf_counter()
        mcmc.run(jax.random.key(seed), extra_fields=("num_steps", "diverging"), **kwargs)
        jax.block_until_ready(mcmc.get_samples())
        return time.perf_counter() - start

    mcmc = new_mcmc()
    cold_seconds = timed_run(mcmc, seed)
    samples = mcmc.get_samples(group_by_chain=True)
    fields = mcmc.get_extra_fields()
    if not setting.runs_twice:
        mcmc = new_mcmc()
    warm_seconds = timed_run(mcmc, seed + 1)

    # The same key and length as in the first run, so this is that run's warm-up.
    mcmc = new_mcmc()
    mcmc.warmup(jax.random.key(seed), collect_warmup=True, extra_fields=("num_steps",), **kwargs)
    warmup_steps = mcmc.get_extra_fields()["num_steps"]

    return Row(
        name,
        accuracy_of(name, samples),
        sum(
            int(np.asarray(steps, np.int64).sum()) for steps in (warmup_steps, fields["num_steps"])
        ),
        int(np.sum(fields["diverging"])),
        cold_seconds,
        warm_seconds,
    )


COLUMNS = (
    f"{'problem':40s} {'mean err':>8s} {'min sd':>7s} {'max sd':>7s} {'R-hat':>7s} {'min ESS':>7s} "
    f"{'gradients':>10s} {'diverg':>6s} {'cold s':>7s} {'warm s':>7s}"
)


def line(row: Row) -> str:
    """Format a row under :data:`COLUMNS`."""
    worst = row.accuracy
    return (
        f"{row.name:40s} {worst.max_mean_error:8.3f} {worst.min_sd_ratio:7.3f} "
        f"{worst.max_sd_ratio:7.3f} {worst.max_r_hat:7.4f} {worst.min_ess:7.0f} "
        f"{row.num_gradients:10d} {row.num_divergences:6d} "
        f"{row.cold_seconds:7.1f} {row.warm_seconds:7.1f}"
    )


def main() -> None:
    """Print the table of the named problems, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--kernel", choices=list(SETTINGS), default="rwpo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    known = [*PROBLEMS, *POSTERIORS]
    if unknown := set(args.names) - set(known):
        parser.error(f"no problem {sorted(unknown)}; choose from {', '.join(known)}")
    setting = SETTINGS[args.kernel]
    print(COLUMNS)
    for name in args.names or [name for name in known if name not in setting.too_slow]:
        print(line(measure(name, setting, args.seed)), flush=True)


if __name__ == "__main__":
    main()
