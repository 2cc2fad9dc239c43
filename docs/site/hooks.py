"""What the site has beside the pages of docs/: the reference pages, the lists of notebooks and decisions, and the files
of the repository that pages link to. Called by MkDocs (`hooks` in mkdocs.yml).
"""

import posixpath
import re
from pathlib import Path

import reference_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sbatch": "bash", ".sh": "bash"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put notebooks and decisions into the navigation; a section without pages is left out."""
    docs = Path(config.docs_dir)
    notebooks = [f"notebooks/{file.name}" for file in sorted(docs.glob("notebooks/*.ipynb"))]
    records = [f"decisions/{file.name}" for file in sorted(docs.glob("decisions/[0-9]*.md"))]
    found = {
        "Notebooks": ["notebooks/README.md", *notebooks] if notebooks else [],
        "Decisions": ["decisions/README.md", *records],
    }
    filled = [{name: found.get(name, pages)} for section in config.nav or [] for name, pages in section.items()]
    config.nav = [section for section in filled if all(section.values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages, and a page or picture for each file of the repository that a page links to."""
    for name, text in reference_pages.pages().items():
        files.append(File.generated(config, name, content=text))
    root, waiting, seen = _root(config), [file.src_uri for file in files.documentation_pages()], set()
    while waiting:
        page = waiting.pop()
        source = _source(page, config)
        if source is None or source.suffix != ".md":
            continue
        for _, target, _ in _links(source.read_text(encoding="utf-8")):
            inside = _inside(source, target, root)
            if inside is None or (inside.is_relative_to(config.docs_dir)) or inside in seen:
                continue
            seen.add(inside)
            name = _page_of(inside, root)
            files.append(_copy(inside, name, config))
            waiting.append(name)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to the repository's files, relative to where a page lies on GitHub, into links to their pages here."""
    source, root, docs = _source(page.file.src_uri, config), _root(config), Path(config.docs_dir)
    if source is None or source.suffix != ".md":
        return markdown

    def here(match: re.Match[str]) -> str:
        inside = _inside(source, match[2], root)
        if inside is None:
            return match[0]
        uri = inside.relative_to(docs).as_posix() if inside.is_relative_to(docs) else _page_of(inside, root)
        return match[1] + posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".") + match[3]

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(here, part) for part in parts)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent


def _source(page: str, config: MkDocsConfig) -> Path | None:
    """The file of the repository that a page of the site is made from; None: it is generated."""
    if page.startswith("repository/"):
        name = page.removeprefix("repository/")
        found = _root(config) / name
        return found if found.exists() else None  # else the text of code, as a page: it has no links
    found = Path(config.docs_dir) / page
    return found if found.exists() else None


def _links(text: str) -> list[tuple[str, str, str]]:
    return LINK.findall(FENCE.sub("", text))


def _inside(source: Path, target: str, root: Path) -> Path | None:
    """The file of the repository that a link leads to; None: it leads out of it."""
    if re.match(r"[a-z]+:", target):
        return None
    found = Path(posixpath.normpath(source.parent / target))
    return found if found.is_relative_to(root) and found.is_file() else None


def _page_of(file: Path, root: Path) -> str:
    name = f"repository/{file.relative_to(root).as_posix()}"
    return name if file.suffix in (".md", ".png", ".jpg") else f"{name}.md"


def _copy(file: Path, name: str, config: MkDocsConfig) -> File:
    if file.suffix in (".png", ".jpg"):
        return File.generated(config, name, abs_src_path=str(file))
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".md":
        path = file.relative_to(_root(config)).as_posix()
        text = f"# {path}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n"
    return File.generated(config, name, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
