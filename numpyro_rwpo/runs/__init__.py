"""Runs beyond one call of ``MCMC.run``: reading a finished one, saving it, resuming it."""
