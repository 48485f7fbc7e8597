"""The scenes of the built-in question and caption sets, with all facts about them. No torch."""
