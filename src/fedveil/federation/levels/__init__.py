"""The levels of a calibrated study: what sites check, and the rule that picks one."""
