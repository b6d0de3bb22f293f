"""papermill, which ends when the build that started it is gone."""

from papermill.cli import papermill

from warp_core.interrupts import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    papermill()
