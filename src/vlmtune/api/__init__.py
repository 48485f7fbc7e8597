"""THE PYTHON API: what `import vlmtune` offers, over the same workflows as the command line."""
