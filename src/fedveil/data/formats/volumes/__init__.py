"""Volumes as stacks of slices: NIfTI files, DICOM series, multi-frame DICOM files, and 3-D arrays.

Every volume is oriented by its own header and resampled, by itself, to the number and size of slices of the study.
"""
