"""LFM2-VL: SigLIP2 tower, pixel-unshuffle connector, LFM2 decoder."""
