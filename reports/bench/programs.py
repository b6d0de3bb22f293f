"""The programs that are measured: those that answer line by line, and whole commands.

Peers run without what our package sets for itself: each is measured as it is by default.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = ("OMP_WAIT", "GOMP_", "MALLOC_", "OPENBLAS_", "MKL_CBWR")  # how the variables begin


def peers_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(OURS)}


@dataclass
class Process:
    """A program that answers each line with a line; what else it says goes to a file."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __enter__(self) -> "Process":
        self.said = tempfile.TemporaryFile()  # a pipe that nobody empties would stop it
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=self.said, text=True, env=self.environment
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self.child.kill()
        self.child.communicate()
        self.said.close()

    def ask(self, **question: Any) -> None:
        assert self.child.stdin
        self.child.stdin.write(json.dumps(question) + "\n")
        self.child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Raises RuntimeError with the program's last words where it has ended."""
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            self.said.seek(0)
            said = self.said.read().decode(errors="replace").strip()[-2000:]
            raise RuntimeError(f"{self.command[-2]} ended with {code}: {said}")
        return json.loads(line)


# A small process in between: a child's peak memory begins with that of the one that forks it.
LAUNCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "memory_mb": usage.ru_maxrss / 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def timed(
    command: Sequence[str], out: Path, environment: Mapping[str, str] = os.environ
) -> dict[str, float]:
    """Wall seconds and peak memory (MB) of a whole process that makes the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    launched = [sys.executable, "-c", LAUNCH, *command]
    done = subprocess.run(launched, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)
