"""The move that a chain samples with, chosen when warm-up is over.

It is that of the flow that warm-up chose, with jumps if the particles are in several modes
(:mod:`numpyro_rwpo.dynamics.several_modes`). If the ensembles of the chains otherwise disagree,
smaller ones start again and move by NUTS transitions (:mod:`numpyro_rwpo.dynamics.trees`).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from numpyro_rwpo.arguments import Arguments
from numpyro_rwpo.dynamics.programs import Programs
from numpyro_rwpo.dynamics.settings import Settings, num_states
from numpyro_rwpo.dynamics.several_modes import Call, share_modes
from numpyro_rwpo.dynamics.state import Ready, after_trees, after_warm_up, has_converged
from numpyro_rwpo.dynamics.trees import MIN_WARMUP, NUM_PARTICLES
from numpyro_rwpo.dynamics.warmup import WarmUp


class Kind(NamedTuple):
    """The kind of a move, which determines the structure of a chain's state.

    Attributes:
        number: number of the flow that warm-up chose.
        has_trees: whether particles move by NUTS transitions.
    """

    number: int
    has_trees: bool


class Choice(NamedTuple):
    """The move with which the chains sample.

    Attributes:
        ready: the ensembles with their move.
        num_states: number of successive states of a particle that a refresh makes.
        kind: kind of the move.
    """

    ready: Ready
    num_states: int
    kind: Kind


def choose_move(
    warm: WarmUp,
    settings: Settings,
    arguments: Arguments,
    programs: Programs,
    inputs: tuple[Any, ...],
    model_args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
    earlier: Kind | None = None,
) -> Choice:
    """The ensembles with their move; small ones start again if the chains still disagree.

    Args:
        warm: the ensembles after warm-up, with a leading chain axis.
        settings: settings of the run.
        arguments: arguments of the kernel.
        programs: programs of the kernel.
        inputs: random keys, starts and numbers with which the ensembles were warmed up.
        model_args: positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        earlier: kind of the moves of the chains of this run that were warmed up before. NumPyro
            stacks the states of chains that run one after another, so all have moves of one kind.
    """
    chosen = warm.adaptation.chosen
    is_traced = isinstance(chosen, jax.core.Tracer)
    number = 0 if is_traced else int(np.asarray(chosen)[0])
    if earlier is not None:
        number = earlier.number
    ready = after_warm_up(warm, number)
    can_choose = (
        settings.corrected
        and arguments.proposal is None
        and settings.placement.mesh is None
        and not is_traced
    )
    can_start_anew = can_choose and settings.num_warmup >= MIN_WARMUP
    # Chains that run one after another would find lists of different length.
    if can_choose and len(ready.potential) > 1:
        call = Call(programs, settings, inputs, model_args, model_kwargs)
        ready, has_several = share_modes(warm, ready, call)
        if has_several:
            return Choice(ready, settings.num_states, Kind(number, False))
    has_trees = can_start_anew and (
        not has_converged(ready.warm_up) if earlier is None else earlier.has_trees
    )
    if not has_trees:
        return Choice(ready, settings.num_states, Kind(number, False))
    small = settings._replace(num_particles=NUM_PARTICLES)
    constants = programs.layout, small
    trees = programs.warm_up_trees(constants, inputs, model_args, model_kwargs)
    ready = after_trees(ready, trees, settings.num_warmup)
    return Choice(ready, num_states(NUM_PARTICLES), Kind(number, True))
