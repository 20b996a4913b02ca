"""Check the links and images inside a built site: ``python docs/check_links.py FOLDER``.

Every link to a page, file, image or anchor of the site itself must have a target. Links to other
sites are not followed. If links are broken, the script lists them and exits with status 1.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ``href``, ``src`` and ``id``."""
        for name, value in attrs:
            if value is None:
                continue
            if name in ("href", "src"):
                self.links.add(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)


def broken_links(folder: Path) -> tuple[list[str], int]:
    """Messages about the broken links on all pages of a site, and the number of links checked.

    ``_static`` is skipped, because it contains files of the theme, including templates of pages.
    """
    folder = folder.resolve()
    paths = (
        p for p in sorted(folder.rglob("*.html")) if p.relative_to(folder).parts[0] != "_static"
    )
    pages = {path: Page(path.read_text()) for path in paths}
    found, number = [], 0
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            number += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path.relative_to(folder)}: {link} does not exist")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.relative_to(folder)}: {link} has no such anchor")
    return found, number


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python docs/check_links.py FOLDER_OF_THE_BUILT_SITE")
    broken, checked = broken_links(Path(sys.argv[1]))
    if not checked:
        sys.exit(f"{sys.argv[1]} has no pages with links; build the site first")
    print(*broken, f"{checked} internal links, {len(broken)} broken", sep="\n")
    sys.exit(bool(broken))
