"""Times of the op and of a training step on random data."""
