"""Runs beyond one call of ``MCMC.run``: reading, saving and resuming them."""
