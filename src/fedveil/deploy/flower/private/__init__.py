"""Every name of Flower that its documentation does not list, in one module for each of fedveil's programs.

Nothing else imports them. When a new version of Flower moves one, `tests/deploy/test_flower_names.py` says which.
One module for each program, so that the node does not load what only the coordinator needs.
"""

__all__: list[str] = []
