"""Features of images before training: an image that fails does not touch the others, and torch need not stay loaded."""
