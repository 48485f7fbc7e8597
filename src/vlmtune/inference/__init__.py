"""ASK: the prefix tree, label scoring, generation, Predictor."""
