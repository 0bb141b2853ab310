"""What MkDocs does beside its own: pages from files outside of `docs/`, links as the repository has them, messages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from messages import markdown as all_messages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).resolve().parents[1]

# Pages of the site that lie elsewhere in the repository.
SOURCES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "targets.md": "raygenesis/transfer/README.md",
    "pretext-tasks.md": "raygenesis/pretraining/README.md",
    "scan-formats.md": "raygenesis/archive/README.md",
    "deployments.md": "infra/README.md",
}
PAGES = {source: page for page, source in SOURCES.items()}
MESSAGES = "<!-- messages -->"

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of `docs/`."""
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=(CHECKOUT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Have links between files of the repository lead to pages of the site; one to a file that is no page is text."""
    name = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(name, f"docs/{name}"))

    def on_site(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in PAGES or path.startswith("docs/"):
            return f"{mark}[{text}]({PAGES.get(path, path.removeprefix('docs/'))}{anchor})"
        if not (CHECKOUT / path).exists():
            raise ValueError(f"{name}: a link leads to {target}, which is not there")
        return text

    return re.sub(LINK, on_site, markdown).replace(MESSAGES, all_messages())
