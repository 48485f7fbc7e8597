"""MEASURE: whole splits, metrics, statistics."""
