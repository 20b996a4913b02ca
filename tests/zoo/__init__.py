"""A zoo of hard targets with known moments: what a sampler says where it is wrong."""
