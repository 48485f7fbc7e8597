"""EXAMPLES: images with their answers, whatever the source."""
