"""A hook of MkDocs: pages outside docs/ join the site, README.md as its first page.

Nothing is copied or moved: on GitHub and in the site, each page is the same file. In the site it is
at its path in the repository, without ``docs/``, so links between pages are written anew.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "LOG.md", "LICENSE", "llms.txt", "Dockerfile")
FOLDERS = ("benchmarks", "evidence", "examples", "recipes", "scripts")
LISTED = ("evidence/records", "benchmarks/results")
"""Folders that are listed on pages of their own, as GitHub does, and those below them."""
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def place_in_site(path: str) -> str:
    """The address of a file of the repository, such as ``docs/commands.md``, in the site."""
    if path == "README.md":
        return "index.md"
    if (REPOSITORY / path).is_dir():  # a link to a folder is one to its page
        path += "/README.md" if (REPOSITORY / path / "README.md").is_file() else "/index.md"
    return path.removeprefix("docs/")


def with_links_of_the_site(text: str, page: str) -> str:
    """The Markdown of a page of the repository, whose links lead to the same files in the site."""
    folder, from_folder = posixpath.dirname(page), posixpath.dirname(place_in_site(page)) or "."

    def link(match: re.Match[str]) -> str:
        start, target, anchor, end = match.groups(default="")
        there = place_in_site(posixpath.normpath(posixpath.join(folder, target)))
        return start + posixpath.relpath(there, from_folder) + anchor + end

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def files_outside_docs() -> Iterator[Path]:
    """Pages, and the files that pages link to."""
    yield from (REPOSITORY / name for name in PAGES)
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def listings() -> Iterator[tuple[Path, str]]:
    """(folder, Markdown that lists its files) of the listed folders."""
    for top in LISTED:
        for name, folders, files in os.walk(REPOSITORY / top):
            links = [*(f"{below}/index.md" for below in folders), *files]
            lines = [f"- [{link.removesuffix('/index.md')}]({link})" for link in sorted(links)]
            yield Path(name), "\n".join([f"# {Path(name).name.capitalize()}", "", *lines, ""])


def on_files(files: Any, config: Any) -> Any:
    """MkDocs lists the files of docs/; the others are added."""
    from mkdocs.structure.files import File

    for path in files_outside_docs():
        place = place_in_site(path.relative_to(REPOSITORY).as_posix())
        files.append(File.generated(config, place, abs_src_path=os.fspath(path)))
    for folder, text in listings():
        place = place_in_site(folder.relative_to(REPOSITORY).as_posix())
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs has read a page, or made one."""
    if page.file.abs_src_path is None:
        return markdown
    path = Path(page.file.abs_src_path).relative_to(REPOSITORY).as_posix()
    return with_links_of_the_site(markdown, path)
