"""The two older repositories' experiment files: the one door by which they enter."""
