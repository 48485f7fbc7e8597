"""EXPLAIN: files of a run made into a page a person looks at; no torch."""
