"""The verb `fedveil plan`."""
