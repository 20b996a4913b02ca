"""Priors with closed forms."""
