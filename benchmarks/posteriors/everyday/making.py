"""Make the reference posteriors of the everyday models.

Where a posterior can be sampled exactly, 100,000 independent draws; elsewhere NUTS in double
precision, 4 x 5000 draws (fewer where they take more than ten minutes of a processor) with a target
acceptance of 0.95, in the coordinates that suit it best. Each file says how it was made.
"""

import time
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS

from benchmarks.posteriors.everyday.reference import Reference, save, summarize
from benchmarks.posteriors.everyday.registry import MODELS, Everyday

NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES = 4, 2000, 5000
MIN_SAMPLES = 2000
MAX_SECONDS = 600.0  # of the processor for the draws, judged by what warm-up took
NUM_EXACT = 25_000  # of each chain
TARGET_ACCEPT = 0.95


def exact_samples(everyday: Everyday) -> tuple[dict[str, Any], dict[str, Any]]:
    """Independent draws (chains, draws, ...) by site, and how they were made."""
    assert everyday.exact is not None
    draws = everyday.exact(np.random.default_rng(0), NUM_CHAINS * NUM_EXACT)
    grouped = {site: x.reshape(NUM_CHAINS, NUM_EXACT, *x.shape[1:]) for site, x in draws.items()}
    return grouped, {"method": "independent draws", "num_samples": NUM_EXACT}


def nuts_samples(
    everyday: Everyday, num_samples: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws of NUTS (chains, draws, ...) by site, and how they were made."""
    model = reparam(everyday.model, config=everyday.reparam)
    mcmc = MCMC(
        NUTS(model, target_accept_prob=TARGET_ACCEPT),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    begin = time.process_time()
    mcmc.warmup(jax.random.key(0), *everyday.args, **everyday.kwargs)
    jax.block_until_ready(mcmc.last_state)
    seconds = time.process_time() - begin
    affordable = int(NUM_WARMUP * MAX_SECONDS / seconds)
    mcmc.num_samples = num_samples or min(NUM_SAMPLES, max(MIN_SAMPLES, affordable))
    mcmc.run(mcmc.post_warmup_state.rng_key, *everyday.args, **everyday.kwargs)
    samples = jax.device_get(mcmc.get_samples(group_by_chain=True))
    samples = {site: x for site, x in samples.items() if not site.endswith("_decentered")}
    return samples, {
        "method": "NUTS, double precision",
        "num_warmup": NUM_WARMUP,
        "num_samples": mcmc.num_samples,
        "is_shortened": mcmc.num_samples < NUM_SAMPLES,
        "target_accept": TARGET_ACCEPT,
        "reparametrized": list(everyday.reparam),
        "num_divergences": int(np.sum(mcmc.get_extra_fields()["diverging"])),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def make_reference(name: str, num_samples: int | None = None) -> Reference:
    """Make and store the reference of a model.

    Args:
        name: Key of ``MODELS``.
        num_samples: Draws of each of the four chains, where they come from NUTS; ``None`` for 5000,
            or fewer where they would take more than ten minutes.
    """
    numpyro.enable_x64()
    everyday = MODELS[name]()
    if everyday.exact is not None:
        samples, about = exact_samples(everyday)
    else:
        samples, about = nuts_samples(everyday, num_samples)
    if everyday.sites is not None:
        samples = {site: samples[site] for site in everyday.sites}
    reference = summarize(samples, {"num_chains": NUM_CHAINS, **about})
    save(name, reference)
    print(name, reference.about, flush=True)
    return reference
