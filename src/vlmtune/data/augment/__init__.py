"""Random changes of training images, and the labels they must not falsify."""
