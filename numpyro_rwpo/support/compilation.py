"""How hard XLA should try to make a program of ours fast."""

from typing import Any

import jax

# Elements of the particles of all chains up to which a warm-up of some hundred gradients runs for
# less time than XLA's optimization of its code takes.
_SMALL = 2**18
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
    is_small = jax.default_backend() == "cpu" and num_elements <= _SMALL
    return dict(_QUICK) if is_small else None
