"""The move that a chain samples with, chosen when warm-up is over.

It is that of the flow that warm-up chose, with jumps if the particles are in several modes
(:mod:`numpyro_rwpo.dynamics.several_modes`). If the ensembles of the chains otherwise disagree,
smaller ones start again and move by NUTS transitions (:mod:`numpyro_rwpo.dynamics.trees`).
"""

from typing import NamedTuple

import jax
import numpy as np

from numpyro_rwpo.arguments import Arguments
from numpyro_rwpo.dynamics.settings import num_states
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
    warm: WarmUp, arguments: Arguments, call: Call, earlier: Kind | None = None
) -> Choice:
    """The ensembles with their move; small ones start again if the chains still disagree.

    Args:
        warm: the ensembles after warm-up, with a leading chain axis.
        arguments: arguments of the kernel.
        call: what its programs need to run.
        earlier: kind of the moves of the chains of this run that were warmed up before. NumPyro
            stacks the states of chains that run one after another, so all have moves of one kind.
    """
    settings, chosen = call.settings, warm.adaptation.chosen
    is_traced = isinstance(chosen, jax.core.Tracer)
    number = 0 if is_traced else int(np.asarray(chosen)[0])
    if earlier is not None:
        number = earlier.number
    ready = after_warm_up(warm, number)
    can_choose = settings.corrected and settings.placement.mesh is None and not is_traced
    # NUTS transitions would not jump to draws of the user's density.
    can_have_trees = arguments.proposal is None and settings.num_warmup >= MIN_WARMUP
    has_trees = (can_choose and can_have_trees) and (
        not has_converged(ready.warm_up) if earlier is None else earlier.has_trees
    )
    small = settings._replace(num_particles=NUM_PARTICLES)
    for_trees = (call.programs.layout, small), call.inputs, call.args, call.kwargs
    # Chains that run one after another would find lists of different length.
    if can_choose and len(ready.potential) > 1:
        if has_trees:  # They will be needed, unless there are several modes.
            call = call._replace(meanwhile=lambda: call.programs.warm_up_trees.begin(*for_trees))
        ready, has_several = share_modes(warm, ready, call)
        if has_several:
            return Choice(ready, settings.num_states, Kind(number, False))
    if not has_trees:
        return Choice(ready, settings.num_states, Kind(number, False))
    call.show("the chains disagree, so NUTS transitions are adapted")
    trees = call.programs.warm_up_trees(*for_trees)
    ready = after_trees(ready, trees, settings.num_warmup)
    return Choice(ready, num_states(NUM_PARTICLES), Kind(number, True))
