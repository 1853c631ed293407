"""Build the zoo.

PYTHONPATH=.:examples python -m zoo [--cut full|small] [--processes 2]      (what `make zoo` runs)
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from demo.fetch import DemoError
from rich.console import Console

from zoo import build
from zoo.cuts import CUTS


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cut", choices=sorted(CUTS), default=os.environ.get("ZOO_CUT") or "full")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="each has one thread (%(default)s)"
    )
    chosen = parser.parse_args()
    if chosen.cut not in CUTS:
        parser.error(f"ZOO_CUT: {chosen.cut!r} is none of {', '.join(sorted(CUTS))}")
    if chosen.processes < 1:
        parser.error("--processes: at least 1")
    build.build(CUTS[chosen.cut], Console(), chosen.processes)


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(f"zoo: {error}")
    except KeyboardInterrupt:
        sys.exit("zoo: stopped; what was finished is kept, run it again to go on")
