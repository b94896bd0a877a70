"""The annotations of each image (label, patient, site, split), and which images are usable."""

__all__: list[str] = []
