"""Random changes of training images, and what they must leave alone."""
