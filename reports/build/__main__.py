"""Run what is not done of the report, then compile it.

    python -m reports.build [--smoke] [--only-compile] [--fresh] [--publish] [--engine ray]

The page and the picture lie below runs/, so that nobody's own run changes a file of the repository;
`--publish` copies them to reports/, and puts the tables of results into README.

`plan.py` reads `sections.yaml` and checks all that it names before anything runs; `run.py` runs the
notebooks, and before them `pool.py` computes what they show; `report.py` makes one HTML file of it.
"""

import argparse
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from reports.build.faults import ReportError
from reports.build.plan import load_project
from reports.build.report import (
    compile_report,
    first_sentences,
    forget_other_code,
    other_code,
    picture,
    with_results,
)
from reports.build.run import run_sections
from warp_core.store.errors import ConfigError, DamagedError, StorageError
from warp_core.store.files import write_bytes

ROOT = Path(__file__).resolve().parent.parent.parent


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 all done, 1 a notebook or the page failed, 2 nothing was run, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.build", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--smoke", action="store_true", help="a trial at tiny sizes, in runs/smoke")
    parser.add_argument("--only-compile", action="store_true", help="run nothing")
    parser.add_argument(
        "--fresh", action="store_true", help="first forget what other code computed"
    )
    parser.add_argument("--publish", action="store_true", help="and copy them to reports/")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="of experiments"
    )
    options = parser.parse_args(argv)
    if options.smoke and options.publish:
        parser.error("a trial is not published")
    try:
        project = load_project(root, options.smoke)
        project.runs.mkdir(parents=True, exist_ok=True)
        with FileLock(project.runs / ".build.lock", timeout=0):
            project.check_folders()
            if options.fresh:
                forget_other_code(project)
            if not options.only_compile:
                run_sections(project, options.engine)
            made = {project.page: compile_report(project).encode()}
            if (png := picture(project)) is not None:
                made[project.page.with_name("results.png")] = png
            if options.publish:
                made |= {root / "reports" / path.name: content for path, content in made.items()}
                readme = root / "README.md"
                if readme.is_file():
                    made[readme] = with_results(readme.read_text("utf-8"), project).encode()
            new = [path for path, b in made.items() if not path.is_file() or path.read_bytes() != b]
            for path in new:
                write_bytes(path, made[path])
            print(f"{'report' if new else 'nothing to do, all is done'}: {project.page}")
            for sentence in first_sentences(project):
                print(f"  {sentence}")
            if others := other_code(project):
                print(
                    f"numbers of {', '.join(others)} were made by other code of the method; "
                    "`make fresh` makes them anew"
                )
    except Timeout:
        print(f"another build is at work in {root / 'runs'}; let it end first", file=sys.stderr)
        return 2
    except ReportError as error:
        print(error, file=sys.stderr)
        return error.code
    except (ConfigError, DamagedError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; all that was done is kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # Also where SIGINT is ignored, as in a script's background job: papermill would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup stays what it is
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    sys.exit(main())
