"""What MkDocs does not do by itself.

README.md, CONTRIBUTING.md and CHANGELOG.md are pages of the site too, and links to them lead there.
A built page that would load anything from elsewhere is an error.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from docs_links import ROOT, TOP_PAGES, loaded_from_elsewhere, relink
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files at the top as pages."""
    for source, page in TOP_PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between `docs` and the top to pages."""
    sources = {name: source for source, name in TOP_PAGES.items()}
    path = page.file.src_uri
    source = PurePosixPath(sources.get(path, f"docs/{path}"))
    return relink(markdown, source, PurePosixPath(path))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from elsewhere."""
    for address in loaded_from_elsewhere(output):
        raise PluginError(
            f"{page.file.dest_uri} loads {address}: a page of this site fetches nothing; "
            "put the file into docs, or leave it out"
        )
    return output
