"""LEARN: preflight, step, loop, checkpoints."""
