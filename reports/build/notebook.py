"""papermill in a process of its own, which ends when the build that started it is gone.

The first argument is the build's process; the others are papermill's.
"""

import sys

from papermill.cli import papermill

from warp_core.store.signals import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    papermill()
