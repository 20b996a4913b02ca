"""The move that a chain samples with, chosen when warm-up is over.

It is that of the flow that warm-up chose, with jumps if the particles are in several modes
(:mod:`numpyro_rwpo.dynamics.several_modes`). If the ensembles of the chains otherwise disagree,
they start again from where transport takes them (:mod:`numpyro_rwpo.dynamics.placement`), and if
they still do, smaller ones move by NUTS transitions (:mod:`numpyro_rwpo.dynamics.trees`).
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
    settings, programs = call.settings, call.programs
    is_traced = isinstance(warm.adaptation.chosen, jax.core.Tracer)

    def after(warm: WarmUp) -> tuple[Ready, Kind]:
        number = 0 if is_traced else int(np.asarray(warm.adaptation.chosen)[0])
        kind = Kind(number, False) if earlier is None else earlier._replace(has_trees=False)
        return after_warm_up(warm, kind.number), kind

    ready, kind = after(warm)
    if not settings.corrected or settings.placement.mesh is not None or is_traced:
        return Choice(ready, settings.num_states, kind)
    # Chains that run one after another would find lists of different length.
    if len(ready.potential) > 1:
        ready, has_several = share_modes(warm, ready, call)
        if has_several:
            return Choice(ready, settings.num_states, kind)
    # Attention would carry draws of the user's density from one separated mode to another, and NUTS
    # transitions would not jump to them.
    if arguments.proposal is not None or settings.num_warmup < MIN_WARMUP:
        return Choice(ready, settings.num_states, kind)
    will_have_trees = earlier is not None and earlier.has_trees
    is_settled = has_converged(ready.warm_up)
    if not is_settled and not will_have_trees:
        call.show("the chains disagree, so the ensembles are transported")
        costs = {name: getattr(ready.warm_up, name) for name in ("num_gradients", "num_rows")}
        placement = warm.placement._replace(**costs)
        constants = programs.layout, settings
        warm = programs.transport(constants, call.inputs, placement, call.args, call.kwargs)
        ready, kind = after(warm)
        is_settled = has_converged(ready.warm_up)
    has_trees = not is_settled if earlier is None else will_have_trees
    if not has_trees:
        return Choice(ready, settings.num_states, kind)
    call.show("the chains disagree, so NUTS transitions are adapted")
    constants = programs.layout, settings._replace(num_particles=NUM_PARTICLES)
    trees = programs.warm_up_trees(constants, call.inputs, call.args, call.kwargs)
    ready = after_trees(ready, trees, settings.num_warmup)
    return Choice(ready, num_states(NUM_PARTICLES), kind._replace(has_trees=True))
