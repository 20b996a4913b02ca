"""Attention heads: densities fitted to an ensemble, and their scores."""
