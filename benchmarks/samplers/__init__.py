"""The samplers of the benchmark: :data:`SAMPLERS`, by name."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import Program, Settings


class Sampler(NamedTuple):
    """A sampler and its settings.

    Attributes:
        label: Its name in tables and figures.
        prepare: Function from problem and settings to a program. Modules are imported when it is
            called, so that no sampler pays for the imports of another.
        settings: Chains and iterations.
        family: ``"rwpo"``, ``"numpyro"``, ``"blackjax"``, ``"nutpie"`` or ``"approximate"``; the
            last are those without an acceptance step, whose answers stay biased.
        evaluates: ``"gradient"`` or ``"potential"``.
        left_out: Problems on which it cannot be run, with the reasons.
    """

    label: str
    prepare: Callable[[Problem, Settings], Program]
    settings: Settings
    family: str
    evaluates: str = "gradient"
    left_out: dict[str, str] = {}


def _kernel(name: str, **options: Any) -> Callable[[Problem, Settings], Program]:
    def prepare(problem: Problem, settings: Settings) -> Program:
        from benchmarks.samplers.numpyro_mcmc import KernelProgram

        module = import_module("numpyro_rwpo" if name == "RWPO" else "numpyro.infer")
        return KernelProgram(problem, settings, partial(getattr(module, name), **options))

    return prepare


def _blackjax(name: str) -> Callable[[Problem, Settings], Program]:
    def prepare(problem: Problem, settings: Settings) -> Program:
        from benchmarks.samplers import blackjax_samplers

        return blackjax_samplers.BlackjaxProgram(
            problem, settings, getattr(blackjax_samplers, name)
        )

    return prepare


def _own(module: str, name: str, **options: Any) -> Callable[[Problem, Settings], Program]:
    def prepare(problem: Problem, settings: Settings) -> Program:
        make = getattr(import_module(f"benchmarks.samplers.{module}"), name)
        return make(problem, settings, **options)

    return prepare


_FEW_WALKERS = {
    name: "an affine-invariant ensemble needs at least two walkers a dimension"
    for name in ("p_much_larger_n", "horseshoe_logistic")
}
_FOUR_CHAINS = Settings(num_chains=4, num_warmup=1000, num_samples=1000)
_WALKERS = Settings(num_chains=128, num_warmup=1000, num_samples=1000)
_PARTICLES = Settings(num_chains=1, num_warmup=500, num_samples=256)  # steps and particles

SAMPLERS: dict[str, Sampler] = {
    "rwpo": Sampler("RWPO", _kernel("RWPO"), Settings(4, 200, 1000), "rwpo"),
    "nuts": Sampler("NUTS, diagonal", _kernel("NUTS"), _FOUR_CHAINS, "numpyro"),
    "nuts_dense": Sampler(
        "NUTS, dense",
        _kernel("NUTS", dense_mass=True),
        _FOUR_CHAINS,
        "numpyro",
    ),
    "blackjax_nuts": Sampler("BlackJAX NUTS", _blackjax("nuts_windows"), _FOUR_CHAINS, "blackjax"),
    "chees": Sampler("BlackJAX ChEES", _blackjax("chees"), Settings(64, 500, 250), "blackjax"),
    "meads": Sampler("BlackJAX MEADS", _blackjax("meads"), Settings(64, 1000, 250, 4), "blackjax"),
    "mclmc": Sampler(
        "BlackJAX adjusted MCLMC",
        _blackjax("adjusted_mclmc"),
        Settings(4, 3000, 1000, 10),
        "blackjax",
    ),
    "nutpie": Sampler("nutpie", _own("nutpie_sampler", "Nutpie"), Settings(4, 400, 1000), "nutpie"),
    "aies": Sampler("AIES", _kernel("AIES"), _WALKERS, "numpyro", "potential", _FEW_WALKERS),
    "ess": Sampler("ESS", _kernel("ESS"), _WALKERS, "numpyro", "potential", _FEW_WALKERS),
    "svgd": Sampler("SVGD", _own("stein", "Svgd"), _PARTICLES, "approximate"),
    "myula": Sampler("MYULA", _own("myula", "Myula"), Settings(4, 1000, 1000, 10), "approximate"),
    "noise_free": Sampler(
        "BRWP splitting, joint",
        _own("noise_free", "NoiseFree", attention="joint"),
        _PARTICLES,
        "approximate",
    ),
    "noise_free_marginal": Sampler(
        "BRWP splitting, marginal",
        _own("noise_free", "NoiseFree", attention="marginal"),
        _PARTICLES,
        "approximate",
    ),
}
