"""From a NumPyro model or a potential function to a target on flat vectors."""
