"""Generators, encoders and the names they go by."""
