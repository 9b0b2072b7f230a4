"""Sources in, records and training files out."""
