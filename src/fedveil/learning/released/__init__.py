"""What is read from released sums: class and score statistics, posterior means under known noise, thresholds.

All of it is post-processing by the coordinator, except the contributions, which sites compute and bound.
"""

__all__: list[str] = []
