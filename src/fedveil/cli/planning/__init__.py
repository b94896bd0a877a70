"""The command `fedveil plan`."""
