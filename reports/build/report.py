"""The report from what was run: the page, the README's picture, and what made its numbers."""

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reports.build.page import Part, ReportError, compile_page
from reports.build.plan import Project, Section, read_notebook
from warp_core.config import FrontConfig
from warp_core.store.files import sealed_json
from warp_core.store.machine import code_of_the_method


def compile_report(project: Project) -> str:
    """The page, from what has been executed. Raises ReportError."""
    sections = {section.id: section for section in project.sections}
    missing = [n for n in project.report if n in sections and not sections[n].executed.is_file()]
    if missing:
        raise ReportError(f"nothing to compile, for these were not run: {', '.join(missing)}")
    parts = []
    for name in project.report:
        if section := sections.get(name):
            parts.append(Part(name, section.executed, section.title))
        else:
            parts.append(Part(Path(name).stem, project.texts / name))
    return compile_page(parts, project.title, provenance(project), project.smoke)


def picture(project: Project) -> bytes:
    """The first figure of the section that sections.yaml names for it, as PNG; or ReportError."""
    cells = read_notebook(project.runs / project.picture / "executed.ipynb").cells
    outputs = (output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    png = next((data["image/png"] for data in outputs if "image/png" in data), None)
    if png is None:
        raise ReportError(f"{project.picture}: it has no figure, and sections.yaml wants one")
    return base64.b64decode(png)


def provenance(project: Project) -> str:
    """When, from which commit and in how long the numbers were made; in Russian."""
    origins = {name: origin for section in project.sections for name, origin in _origins(section)}
    seconds = sum(origin.get("seconds", 0.0) for origin in origins.values())
    commits = {origin["commit"] for origin in origins.values()}
    executed = (section.executed for section in project.sections if section.executed.is_file())
    ended = max(read_notebook(path).metadata["papermill"]["end_time"] for path in executed)
    year, month, day = ended[:10].split("-")
    sentences = (
        f"Вычисления закончены {day}.{month}.{year}; суммарное время задач — {seconds / 60:.0f} мин; "
        f"коммит: {', '.join(sorted(commits)) or 'неизвестен'}."
    )
    if others := other_code(project):
        named = "; ".join(f"{name} — {commit}" for name, commit in others.items())
        sentences += (
            f" Другой версией кода метода получены числа разделов (раздел — коммит): {named}; "
            "make fresh вычисляет их заново."
        )
    return sentences


def other_code(project: Project) -> dict[str, str]:
    """Sections whose numbers were made by other code of the method than this -> its commit."""
    found = {}
    for section in project.sections:
        for _, origin in _origins(section):
            if origin.get("code") != code_of_the_method():
                found[section.id] = origin["commit"]
    return found


def forget_other_code(project: Project) -> None:
    """Remove what other code made, and what this code made of it: run folders, results in the store."""
    store = project.runs / "store"
    origins = {
        path.parent.name: sealed_json(path, path.parent) for path in store.glob("*/origin.json")
    }
    decides = {name: json.dumps(origin["decides"]) for name, origin in origins.items()}
    code = code_of_the_method()
    other = [name for name, origin in origins.items() if origin.get("code") != code]
    for name in other:  # which grows by what reads it
        other += [each for each, text in decides.items() if name in text and each not in other]
    folders = [project.runs / name for name in other_code(project)]
    # Killed meanwhile, no reader may be left without what it was made from.
    for folder in [*folders, *(store / name for name in reversed(other))]:
        if folder.is_dir():
            store.mkdir(exist_ok=True)
            hidden = tempfile.mkdtemp(dir=store, prefix=f".forgotten-{folder.name}-")
            folder.rename(Path(hidden) / folder.name)  # whole or not at all
            shutil.rmtree(hidden)


def _origins(section: Section) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What made a section's numbers: of each result by name; or of the run folder as a whole."""
    folder = section.runs / section.id
    if isinstance(section.config, FrontConfig):  # they lie with their experiment's
        folder = section.root / section.config.run_dir
    if (folder / "origins.json").is_file():
        yield from sealed_json(folder / "origins.json").items()
    elif (folder / "meta.json").is_file():
        timing = folder / "timing.json"
        yield (
            folder.name,
            (sealed_json(timing) if timing.is_file() else {}) | sealed_json(folder / "meta.json"),
        )
