"""How long `fedveil --help` takes, beside a program that only imports typer.

Prints one JSON line: ``help_over_typer`` is the ratio of the median wall times of runs that alternate, so that what
else the machine does falls on both alike.
"""

import json
import statistics
import subprocess
import sys
import time

RUNS = 40
TYPER = (sys.executable, "-c", "import typer")
HELP = (sys.executable, "-m", "fedveil", "--help")
LIBRARY = (sys.executable, "-c", "import fedveil")


def seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main():
    taken = {TYPER: [], HELP: [], LIBRARY: []}
    for command in taken:
        seconds(command)  # byte code is compiled, files are in the cache
    for _ in range(RUNS):
        for command, times in taken.items():
            times.append(seconds(command))
    middle = {command: statistics.median(times) for command, times in taken.items()}
    print(
        json.dumps(
            {
                "help_over_typer": round(middle[HELP] / middle[TYPER], 3),
                "import_over_typer": round(middle[LIBRARY] / middle[TYPER], 3),
                "help_seconds": round(middle[HELP], 4),
                "runs": RUNS,
            }
        )
    )


if __name__ == "__main__":
    main()
