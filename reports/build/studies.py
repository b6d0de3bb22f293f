"""Compute what studies lack in reports/studies/.

python -m reports.build.studies params/study_*.yaml [--dry-run] [--engine ray]
"""

import argparse
import signal
import sys
from pathlib import Path

from reports.text.statistics import load_study
from warp_core.config import ConfigError
from warp_core.engine.tables import forecast
from warp_core.store.errors import MessageOnly
from warp_core.store.results import Store
from warp_core.study import STORE, run_studies, tables_of


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 computed, 1 something failed, 2 refused, 130 stopped."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m reports.build.studies", description=about)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="where")
    options = parser.parse_args(argv)
    try:
        studies = [load_study(path) for path in options.files]
        if options.dry_run:
            print(forecast(tables_of(studies), Store(STORE), options.engine))
            return 0
        for study, rows in zip(studies, run_studies(studies, options.engine), strict=True):
            print(f"{study.path}: {len(rows)} rows")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, MessageOnly):
            raise
        print(error, file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # also where they are ignored, as behind nohup
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
