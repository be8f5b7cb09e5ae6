"""Links of the documentation's pages to files of the repository, which the site does not have.

In the repository, `[text](../results)` is a link. On the site it becomes the text with the path. A path that does not exist is an error.
"""

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
log = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links to files of the repository."""

    def replace(link: re.Match[str]) -> str:
        text, path = link.groups()
        if not (ROOT / path).exists():
            log.warning("%s: there is no file %s", page.file.src_path, path)  # an error in strict mode
        return text if path.rstrip("/") in text else f"{text} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)\)", replace, markdown)
