"""``python -m fedveil`` is the program ``fedveil``."""

from fedveil.cli import main

main()
