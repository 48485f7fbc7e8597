"""WHAT A COMMAND DOES: whole flows without printing; progress goes to callbacks."""
