"""EXPLAIN: files of a run become a page to read; no torch."""
