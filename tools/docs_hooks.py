"""What MkDocs does not do by itself: pages of the files at the top, and links that leave `docs`.

README.md, CONTRIBUTING.md and CHANGELOG.md are pages of the site too, and links to them lead there.
A link to another file of the checkout (a module, a test) becomes its bare text, since the site does
not hold the file; one to a file that is not there is left as it is, for MkDocs to refuse. A built page
that would load anything from elsewhere is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# file at the top -> page of the site
TOP_PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
# what a browser loads by itself; a plain link is followed by people
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?P<src>(?:https?:)?//[^\"'\s>]+)"
    r"|<link\b[^>]*\bhref=[\"']?(?P<href>(?:https?:)?//[^\"'\s>]+)"
)
_FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files at the top as pages."""
    for source, page in TOP_PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between `docs` and the top to pages."""
    pages = {source: name for name, source in TOP_PAGES.items()}
    path = page.file.src_uri
    source = PurePosixPath(pages[path] if path in pages else f"docs/{path}")
    parts = _FENCE.split(markdown)
    # every second part is a fenced block
    return "".join(
        part if index % 2 else relink(part, source, PurePosixPath(path))
        for index, part in enumerate(parts)
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from elsewhere."""
    for match in _LOADED.finditer(output):
        found = match["src"] or match["href"]
        raise PluginError(
            f"{page.file.dest_uri} loads {found}: a page of this site fetches nothing; "
            "put the file into docs, or leave it out"
        )
    return output


def relink(markdown: str, source: PurePosixPath, page: PurePosixPath) -> str:
    """Links of a file at ``source`` in the checkout, as they are on ``page`` of the site."""

    def replaced(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        wanted = os.path.normpath(source.parent / target)
        if wanted in TOP_PAGES:
            inside = TOP_PAGES[wanted]
        elif wanted.startswith("docs/"):
            inside = wanted.removeprefix("docs/")
        elif (ROOT / wanted).exists():
            return match["text"]
        else:
            return match[0]
        new = os.path.relpath(inside, page.parent) + (f"#{anchor}" if anchor else "")
        return f"{match['image']}[{match['text']}]({new})"

    return _LINK.sub(replaced, markdown)
