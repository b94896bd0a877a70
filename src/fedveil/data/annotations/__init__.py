"""What is said of each image: label, patient, site, split; and which images can be used for it."""

__all__: list[str] = []
