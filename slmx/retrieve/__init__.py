"""Passages in, rankings out."""
