"""Questions in, predictions and metrics out."""
