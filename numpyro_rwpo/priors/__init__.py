"""Priors that have closed forms."""
