"""The report from what was run: the page, the README's picture, and what made its numbers."""

import base64
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from reports.build.faults import ReportError
from reports.build.page import About, Part, compile_page
from reports.build.plan import Project, Section, read_notebook
from reports.build.references import load_bibliography
from warp_core.config import FrontConfig, WarpConfig, load_params
from warp_core.store.files import beside, sealed_json
from warp_core.store.machine import code_of_the_method
from warp_core.store.results import Store


def compile_report(project: Project) -> str:
    """The page, from what has been executed. Raises ReportError."""
    sections = {section.id: section for section in project.sections}
    names = [*project.report, *project.appendices]
    missing = [n for n in names if n in sections and not sections[n].executed.is_file()]
    if missing:
        raise ReportError(f"nothing to compile, for these were not run: {', '.join(missing)}")
    parts = []
    for k, name in enumerate(names):
        behind = k >= len(project.report)
        if section := sections.get(name):
            parts.append(Part(name, section.executed, section.title, behind, section.made_by))
        else:
            parts.append(Part(Path(name).stem, project.texts / name, appendix=behind))
    works = project.texts / "bibliography.yaml"
    about = About(
        project.title,
        byline(project),
        provenance(project),
        description(project),
        picture(project) or b"",
        project.smoke,
    )
    return compile_page(
        parts, about, load_bibliography(works) if works.is_file() else {}, project.left_out
    )


def picture(project: Project) -> bytes | None:
    """The first figure with a PNG of the section that sections.yaml names for it; None without one."""
    for data in _outputs(project, project.picture):
        if "image/png" in data:
            return base64.b64decode(data["image/png"])
    return None


def first_sentences(project: Project) -> list[str]:
    """What the report begins with: the items of its first section's first list, without marks."""
    return [re.sub(r"\*\*|\s*\[@[^\]]+\]", "", item) for item in _first_items(project)]


def description(project: Project) -> str:
    """What of them is bold, for those who list pages."""
    bold = [each for item in _first_items(project) for each in re.findall(r"\*\*(.+?)\*\*", item)]
    return "".join(f"{each}. " for each in bold).strip()


def _first_items(project: Project) -> list[str]:
    for data in _outputs(project, project.report[0]):
        if items := re.findall(r"^(?:\d+\.|-) (.+)$", data.get("text/markdown", ""), re.MULTILINE):
            return items
    return []


def with_results(readme: str, project: Project) -> str:
    """README with its tables made anew."""
    from reports.text import comparison, verdicts  # with torch, which no other build waits for
    from reports.text import readme as tables
    from reports.text.statistics import load_study

    names = [s.id for s in project.stage("experiments") if isinstance(s.config, WarpConfig)]
    summaries = comparison.load_summaries(project.runs, sorted(names))
    params = {name: load_params(project.runs / name / "params.yaml") for name in summaries}
    rows = verdicts.load_rows(load_study("params/study_seed_report.yaml"))
    experiments = comparison.experiments_table(summaries, params, rows)
    claims = verdicts.of_studies(verdicts.load_studies())
    return tables.with_tables(
        readme,
        {"claims": tables.claims_table(claims), "results": tables.experiments_table(experiments)},
    )


def _outputs(project: Project, name: str) -> Iterator[Mapping[str, Any]]:
    path = project.runs / name / "executed.ipynb"
    for cell in read_notebook(path).cells if path.is_file() else []:
        yield from (output.get("data", {}) for output in cell.get("outputs", []))


def byline(project: Project) -> str:
    """Under the title: when, from which commit, where and in how long the numbers were made."""
    origins = {name: origin for section in project.sections for name, origin in _origins(section)}
    commits = sorted({origin["commit"] for origin in origins.values()})
    devices = sorted({origin["device"] for origin in origins.values() if "device" in origin})
    minutes = sum(origin.get("seconds", 0.0) for origin in origins.values()) / 60
    facts = [
        *([f"{_newest(project):%d.%m.%Y}"] if origins else []),
        f"коммит {', '.join(commits) or 'неизвестен'}",
        *devices,
        f"{minutes:.0f} мин вычислений (исследования — сверх того)",
        "Apache-2.0",
    ]
    return " · ".join(facts)


def _newest(project: Project) -> date:
    """When the newest result was written; not when the page was made, which is no result."""
    metas = [project.runs / section.id / "meta.json" for section in project.sections]
    return date.fromtimestamp(max(path.stat().st_mtime for path in metas if path.is_file()))


def provenance(project: Project) -> str:
    """Of whose code the numbers are; in Russian."""
    if others := other_code(project):
        commits = ", ".join(sorted(set(others.values())))
        return (
            f"После коммита {commits}, на котором получены числа разделов {', '.join(others)}, код метода "
            "изменился; make fresh вычисляет их заново."
        )
    return (
        "Все числа экспериментов получены одной версией кода метода; у исследований она записана в каждой "
        "строке reports/studies/."
    )


def other_code(project: Project) -> dict[str, str]:
    """Sections whose numbers were made by other code of the method than this -> its commit."""
    found = {}
    for section in project.sections:
        for _, origin in _origins(section):
            if origin.get("code") != code_of_the_method():
                found[section.id] = origin["commit"]
    return found


def forget_other_code(project: Project) -> None:
    """Remove what other code made or began, and what this code made of it: run folders, the store's."""
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
    for name in Store(store).begun_by_other_code():
        Store(store).forget(name)
    # Killed meanwhile, no reader may be left without what it was made from.
    for folder in [*folders, *(store / name for name in reversed(other))]:
        if folder.is_dir():
            store.mkdir(exist_ok=True)
            hidden = tempfile.mkdtemp(**beside(store / f"forgotten-{folder.name}"))
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
