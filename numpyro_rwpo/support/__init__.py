"""What the other packages stand on and what knows nothing of them."""
