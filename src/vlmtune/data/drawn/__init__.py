"""The scenes of the built-in question and caption sets, with everything that is true of them. No torch."""
