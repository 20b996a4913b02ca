"""How hard XLA should try to make a program of ours fast."""

from typing import Any

import jax

_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def quick_options(num_elements: int) -> dict[str, Any] | None:
    """Compiler options for a program that runs once on arrays of this many elements.

    ``None`` where it runs long enough to be worth optimizing, and on devices other than CPUs,
    which do not know these options.
    """
    # Up to 2^18 elements in the particles of all chains, a warm-up of some hundred gradients runs
    # for less time than XLA takes to optimize its code.
    is_small = jax.default_backend() == "cpu" and num_elements <= 2**18
    return dict(_QUICK) if is_small else None
