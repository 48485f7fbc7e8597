"""PaliGemma 1 and 2: SigLIP tower, linear connector, Gemma decoder."""
