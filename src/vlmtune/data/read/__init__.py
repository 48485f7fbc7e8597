"""Readers: every layout of a data source, as named splits of rows."""
