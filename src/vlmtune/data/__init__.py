"""EXAMPLES: pictures with their answers, whatever the source."""
