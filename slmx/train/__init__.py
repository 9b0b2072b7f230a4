"""Pairs in, weights out: `slmx train …`."""
