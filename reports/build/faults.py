"""What a page must not have: an address outside itself, a script, an id twice, a link to nowhere."""

import re
from collections.abc import Collection
from html.parser import HTMLParser

FORBIDDEN = {"script", "link", "iframe", "object", "embed", "base", "form"}  # elements
ADDRESSES = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}
CSV = "data:text/csv;charset=utf-8;base64,"


class ReportError(RuntimeError):
    """The report cannot be made; the message is for the person who asked for it."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code  # exit status


class _Reader(HTMLParser):
    """Collects ids, links and whatever would make the page depend on something outside it."""

    def __init__(self, outside: Collection[str]) -> None:
        super().__init__()
        self.outside = outside
        self.ids: list[str] = []
        self.links: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in FORBIDDEN:
            self.faults.append(f"{self.get_starttag_text():.200}")
        names = {key for key, _ in attrs}
        for key, given in attrs:
            value = (given or "").strip()
            if key == "id":
                self.ids.append(value)
            elif key == "href" and value.startswith("#"):
                self.links.append(value[1:])
            elif key == "style":
                self.check_style(value)
            elif key == "clip-path" and (inner := re.fullmatch(r"url\(#([\w-]+)\)", value)):
                self.links.append(inner[1])
            elif tag == "a" and key == "href" and value in self.outside:
                pass  # a work of the bibliography, which a reader may follow
            elif tag == "a" and key == "href" and value.startswith(CSV) and "download" in names:
                pass  # the data behind a figure, which is in the page
            elif (
                key == "href"
                or (key in ADDRESSES and not value.startswith("data:image/"))
                or key.startswith("on")
                or "url(" in value
                or (key == "http-equiv" and value.lower() == "refresh")
            ):
                self.faults.append(f'<{tag} {key}="{value:.200}">')

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.check_style(data)

    def check_style(self, style: str) -> None:
        self.faults += re.findall(r"(?:url\(|@import).{0,200}", style)


def page_faults(page: str, outside: Collection[str] = ()) -> list[str]:
    """What a page that stands on its own must not have; empty for a good page.

    `outside`: addresses that a reader may follow.
    """
    reader = _Reader(outside)
    reader.feed(page)
    twice = sorted({i for i in reader.ids if reader.ids.count(i) > 1})
    nowhere = sorted(set(reader.links) - set(reader.ids))
    return [
        *reader.faults,
        *(f"id {i!r} is there more than once" for i in twice),
        *(f"a link leads to #{link}, which is nowhere" for link in nowhere),
    ]
