"""What a calibrated study asks: its grid of levels, and the constants of the rule."""
