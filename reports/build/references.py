"""What a text may refer to as [@id]: sections, figures, tables, works of the bibliography.

A section's id is its own, a figure's or table's is section:label, a work's its key. They are numbered in
the order of the page, and a reference to nothing stops the build.
"""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from reports.build.faults import ReportError

REFERENCE = re.compile(r"\[@([^\]\s]+)\]")
LETTERS = "АБВГДЕЖЗИКЛМНПРСТУФХЦЧШЭЮЯ"


@dataclass(frozen=True)
class Work:
    """Of the bibliography."""

    text: str
    url: str


def load_bibliography(path: Path) -> dict[str, Work]:
    """Key -> work, in the order of the file."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: Work(**entry) for key, entry in entries.items()}


@dataclass
class References:
    """Where each id leads, and what is written there."""

    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    """id -> the element's id in the page, what a text says of it"""
    left_out: frozenset[str] = frozenset()
    """Sections that this page does not have, though others do: of a trial."""
    counts: dict[str, int] = field(default_factory=dict)

    def add_section(self, name: str, appendix: bool, numbered: bool = True) -> str:
        """Returns its number as its heading has it; the page's first section has none."""
        if not numbered:
            self._add(name, name, "начало отчёта")
            return ""
        n = self._next("appendix" if appendix else "section")
        number = LETTERS[n - 1] if appendix else str(n)
        self._add(name, name, f"прил.\u00a0{number}" if appendix else f"§\u00a0{number}")
        return number

    def add_shown(self, section: str, label: str, kind: str) -> tuple[str, str]:
        """Of a figure or table: its element's id, and «Рис. 3»."""
        number, where = self._next(kind), f"{kind}-{section}-{label}"
        short = {"figure": "рис.", "table": "табл."}[kind]
        self._add(f"{section}:{label}", where, f"{short}\u00a0{number}")
        return where, f"{short.capitalize()}\u00a0{number}"

    def add_works(self, keys: Iterable[str]) -> None:
        for number, key in enumerate(keys, start=1):
            self._add(key, f"work-{key}", f"[{number}]")

    def pieces(self, text: str) -> list[str | tuple[str, str]]:
        """The text with its references as (element, what is written); ReportError where one dangles."""
        parts: list[str | tuple[str, str]] = []
        for k, part in enumerate(REFERENCE.split(text)):
            if k % 2 == 0:
                parts += [part] if part else []
            elif part in self.found:
                parts.append(self.found[part])
            elif part.partition(":")[0] in self.left_out:
                parts.append("[нет в пробном запуске]")
            else:
                raise ReportError(f"[@{part}] refers to nothing on the page")
        return parts

    def html(self, text: str) -> str:
        """The text as HTML, its references as links."""
        return "".join(
            html.escape(part, quote=False)
            if isinstance(part, str)
            else f'<a href="#{html.escape(part[0])}">{html.escape(part[1])}</a>'
            for part in self.pieces(text)
        )

    def _next(self, kind: str) -> int:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return self.counts[kind]

    def _add(self, name: str, where: str, said: str) -> None:
        if name in self.found:
            raise ReportError(f"[@{name}] is there twice; a label is used once in its section")
        self.found[name] = where, said


def bibliography_html(works: Mapping[str, Work]) -> str:
    """The list of works."""
    items = (
        f'<li id="work-{html.escape(key)}">{html.escape(work.text)} '
        f'<a href="{html.escape(work.url)}" rel="noreferrer">{html.escape(work.url)}</a></li>'
        for key, work in works.items()
    )
    return f'<ol class="works">{"".join(items)}</ol>'
