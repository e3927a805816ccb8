"""Preview and check the site with Pandoc alone, from what Quarto reads: `_quarto.yml` and `_proc`.

    python tools/preview.py                  write _preview/, list every problem, fail for any
    python tools/preview.py --out FOLDER     write the pages to another folder
    python tools/preview.py readme           write README.md from nbs/index.ipynb
    python tools/preview.py readme --check   fail if README.md is not what that command would write

Only the Quarto markup that the notebooks use is understood; anything else is a problem, no guess.
"""
import argparse
import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import pypandoc
import yaml

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
PANDOC = [pypandoc.get_pandoc_path(), "--from=markdown+autolink_bare_uris",
          f"--lua-filter={TOOLS / 'quarto_subset.lua'}"]
CELL_OPTIONS = {
    "label", "fig-cap", "fig-alt", "tbl-cap", "echo", "output", "include", "eval", "warning",
    "error", "code-fold", "code-summary", "fig-width", "fig-height", "classes", "column",
}
FRONT_MATTER = {
    "title", "description", "output-file", "skip_showdoc", "skip_exec", "toc", "image", "author",
    "date", "code-links", "page-layout", "sidebar",
}
OUTPUT_KINDS = (
    "text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain",
)
SUMMARY = "Show the code"  # `code-summary` of _quarto.yml
SUFFIX = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}


@dataclass
class Page:
    "One processed notebook on its way to one HTML file"
    source: PurePosixPath  # of the notebook, relative to nbs/
    target: PurePosixPath  # of the HTML file, relative to the site
    front: dict            # title, description ...
    markdown: str
    files: dict[str, bytes]  # pictures to write beside the HTML file
    problems: list[str]

    @property
    def up(self) -> str:
        "From this page to the top of the site"
        return "../" * len(self.target.parent.parts)


def text(source: str | list[str]) -> str:
    "A notebook's source or output as one string"
    return source if isinstance(source, str) else "".join(source)


def split_options(
    source: str,  # of a code cell
) -> tuple[dict, str]:  # options, code
    "The `#| key: value` lines at the top of a code cell, and the rest"
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    options = {}
    for line in lines[:n]:
        key, sep, value = line[2:].strip().partition(":")
        options[key.strip()] = yaml.safe_load(value) if sep else True
    return options, "\n".join(lines[n:]).strip("\n")


def fence(
    body: str,        # what stands in the block
    attributes: str,  # Pandoc's, behind the opening fence
) -> str:
    "A fenced code block, with a fence longer than any inside"
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{ticks}{attributes}\n{body.rstrip()}\n{ticks}"


def picture_markdown(
    kind: str,      # a MIME type of SUFFIX
    body: str,      # the picture: text of an SVG, base64 of the others
    options: dict,  # of the cell
    page: Page,     # gets the file, and a problem if there is no alt text
    stem: str,      # of the page's file name
) -> str:
    "A picture as a file of the page, and the markdown that shows it"
    alt = options.get("fig-alt")
    if not alt:
        page.problems.append(f"picture without fig-alt: {options.get('label', 'unlabelled')}")
    name = f"{stem}_files/{len(page.files) + 1}.{SUFFIX[kind]}"
    page.files[name] = body.encode() if SUFFIX[kind] == "svg" else base64.b64decode(body)
    quoted = re.sub(r'(["\\])', r"\\\1", str(alt))
    return f'![]({name}){{fig-alt="{quoted}"}}'


def output_markdown(
    output: dict,   # as the notebook stores it
    options: dict,  # of the cell
    page: Page,     # gets the files and the problems
    stem: str,      # of the page's file name
) -> str:
    "One stored output of a code cell as markdown"
    if output["output_type"] == "error":
        page.problems.append(f"stored output is an error: {output['ename']}: {output['evalue']}")
        return ""
    asis = options.get("output") == "asis"
    if output["output_type"] == "stream":
        body = text(output["text"])
        return body if asis else fence(body, "")
    data = output.get("data", {})
    kind = next((k for k in OUTPUT_KINDS if k in data), None)
    if kind is None or any("widget" in k for k in data):
        page.problems.append(f"unknown kind of output: {', '.join(data)}")
        return ""
    body = text(data[kind])
    if kind == "text/markdown": return body
    if kind == "text/html": return fence(body, "{=html}")
    if kind == "text/plain": return body if asis else fence(body, "")
    return picture_markdown(kind, body, options, page, stem)


def in_box(
    block: str,    # markdown of an output
    output: dict,  # as the notebook stores it
) -> str:
    "The output in a box of the classes that Quarto gives it"
    name = output.get("name", "display")
    return f":::: {{.cell-output .cell-output-{name}}}\n{block}\n::::"


def labelled(
    blocks: list[str],  # markdown of each output
    options: dict,      # of the cell
) -> list[str]:
    "The same blocks; the figure or table among them gets the cell's label and caption"
    label = str(options.get("label", ""))
    if not (blocks and label.startswith(("fig-", "tbl-"))): return blocks
    caption = options.get("fig-cap") or options.get("tbl-cap") or ""
    wanted = "![](" if label.startswith("fig-") else "{=html}"
    i = next((i for i, block in enumerate(blocks) if wanted in block), len(blocks) - 1)
    block = f"::: {{#{label}}}\n{blocks[i]}\n\n{caption}\n:::"
    return [*blocks[:i], block, *blocks[i + 1:]]


def shown_code(
    code: str,      # without options
    options: dict,  # of the cell
) -> str:
    "The code as a block, folded if the cell asks for it"
    shown = fence(code, "{.python}")
    fold = options.get("code-fold")
    if not fold: return shown
    summary = html.escape(options.get("code-summary", SUMMARY))
    is_open = " open" if fold == "show" else ""
    return (f'<details class="code-fold"{is_open}><summary>{summary}</summary>\n\n'
            f"{shown}\n\n</details>")


def code_markdown(
    cell: dict,  # as the notebook stores it
    page: Page,  # gets the files and the problems
    stem: str,   # of the page's file name
) -> str:
    "A code cell and its outputs as markdown"
    options, code = split_options(text(cell["source"]))
    for key in options.keys() - CELL_OPTIONS:
        page.problems.append(f"unknown cell option: {key}")
    if options.get("include") is False: return ""
    asis = options.get("output") == "asis"
    outputs = [] if options.get("output") is False else cell.get("outputs", [])
    blocks = [output_markdown(output, options, page, stem) for output in outputs]
    outputs = [output for block, output in zip(blocks, outputs) if block]
    blocks = labelled([block for block in blocks if block], options)
    if not asis: blocks = list(map(in_box, blocks, outputs))
    if options.get("echo") is not False and code:
        blocks.insert(0, shown_code(code, options))
    body = "\n\n".join(blocks)
    if asis or not body: return body
    classes = " ".join(f".{name}" for name in ["cell", *str(options.get("classes", "")).split()])
    return f"::::: {{{classes}}}\n{body}\n:::::"


def read_page(
    proc: Path,  # folder of processed notebooks
    path: Path,  # one of them
) -> Page:
    "A processed notebook as a page"
    source = PurePosixPath(path.relative_to(proc).as_posix())
    page = Page(source, source.with_suffix(".html"), {}, "", {}, [])
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        body = text(cell["source"])
        raw = cell["cell_type"] == "raw"
        front = re.fullmatch(r"---\n(.+?)\n---\s*", body, re.S) if raw else None
        if front:
            page.front |= yaml.safe_load(front[1])
            page.target = source.with_name(page.front.get("output-file", page.target.name))
        elif cell["cell_type"] == "markdown": blocks.append(body)
        elif cell["cell_type"] == "code":
            blocks.append(code_markdown(cell, page, page.target.stem))
        else: page.problems.append(f"raw cell: {body[:40]!r}")
    for key in page.front.keys() - FRONT_MATTER:
        page.problems.append(f"unknown front matter: {key}")
    if "title" not in page.front:
        page.problems.append("no title: start the notebook with `# Title` and `> description`")
    page.markdown = "\n\n".join(b for b in blocks if b)
    return page


def read_config(folder: Path) -> dict:
    "`_quarto.yml` with the `website` part of its metadata files merged in"
    config = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))
    for name in config.get("metadata-files", []):
        extra = yaml.safe_load((folder / name).read_text(encoding="utf-8")) or {}
        config["website"] = extra.get("website", {}) | config["website"]
    return config


def listed(
    contents: list,  # of the sidebar, or of a section of it
) -> list[str]:
    "Every notebook of the sidebar, in order"
    found = []
    for item in contents:
        found += [item] if isinstance(item, str) else listed(item.get("contents", []))
    return found


def sidebar(
    contents: list,          # of the sidebar, or of a section of it
    pages: dict[str, Page],  # by the name of the notebook
    here: Page,              # the page that the sidebar is for
) -> str:
    "The sidebar as nested lists; the section of this page is open"
    rows = []
    for item in contents:
        if isinstance(item, str):
            if item not in pages: continue
            page = pages[item]
            mark = ' aria-current="page"' if page is here else ""
            title = html.escape(page.front.get("title", item))
            rows.append(f'<li><a href="{here.up}{page.target}"{mark}>{title}</a></li>')
        else:
            is_open = " open" if str(here.source) in listed(item["contents"]) else ""
            section = f"<summary>{html.escape(item['section'])}</summary>"
            inner = sidebar(item["contents"], pages, here)
            rows.append(f"<li><details{is_open}>{section}{inner}</details></li>")
    return f"<ul>{''.join(rows)}</ul>"


def bar(
    items: list[dict],       # of the navigation bar
    pages: dict[str, Page],  # by the name of the notebook
    here: Page,              # the page that the bar is for
) -> str:
    "The links of the navigation bar"
    links = []
    for item in items:
        page = pages[item["href"]]
        mark = ' aria-current="page"' if page is here else ""
        text = html.escape(item["text"])
        links.append(f'<a class="bar" href="{here.up}{page.target}"{mark}>{text}</a>')
    return "".join(links)


def relink(
    page: Page,              # whose markdown
    pages: dict[str, Page],  # by the name of the notebook
    site_url: str,           # of the published site
) -> str:
    "The page's markdown; links to notebooks and to the published site lead to local pages"
    def local(match):
        goal = os.path.normpath(page.source.parent / match[1])
        if goal not in pages: return match[0]  # leads nowhere, which the link check reports
        return f"]({page.up}{pages[goal].target}{match[2] or ''})"
    markdown = page.markdown.replace(f"]({site_url}/", f"]({page.up}")
    return re.sub(r"\]\(([^)\s#:]+\.ipynb)(#[^)\s]*)?\)", local, markdown)


def code_links(
    page: Page,     # with `code-links` in its front matter
    site_url: str,  # of the published site, whose downloads lie beside the local page, too
) -> str:
    "The page's `code-links` as HTML"
    def link(item):
        local = item["href"].startswith(f"{site_url}/")
        href = item["href"].replace(f"{site_url}/", page.up) if local else item["href"]
        attributes = f'class="{item["icon"]}" href="{html.escape(href)}"'
        return f'<a {attributes}{" download" if local else ""}>{html.escape(item["text"])}</a>'
    return "".join(map(link, page.front.get("code-links", [])))


def pandoc(
    markdown: str,    # what is converted
    cwd: Path,        # folder that it is read in
    *arguments: str,  # of Pandoc's command line
) -> tuple[str, list[str]]:  # output, problems
    "Pandoc's output, with each of its warnings as a problem"
    done = subprocess.run([*PANDOC, *arguments], cwd=cwd, input=markdown, capture_output=True,
                          text=True, encoding="utf-8")
    if done.returncode: raise SystemExit(done.stderr)
    warnings = re.split(r"^\[WARNING\](?: Scripting warning at .+?:)?", done.stderr, flags=re.M)
    return done.stdout, [" ".join(w.split()) for w in warnings if w.strip()]


class Scan(HTMLParser):
    "What checks and search need of a finished page: ids, links, stray markup, text by section"
    STRAY = re.compile(r":::+|\{#[\w-]+\}?|\{\{<.*|(?<!\S)#{2,6} .*")
    VOID = {"img", "br", "hr", "input", "meta", "link", "col", "wbr"}

    def __init__(self, page: str):
        super().__init__()
        self.ids, self.links, self.stray, self.open = set(), [], [], []
        self.sections = [["", "", ""]]  # anchor, heading, text
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag not in self.VOID: self.open.append(tag)
        if "id" in a: self.ids.add(a["id"])
        self.links += [a[k] for k in ("href", "src") if a.get(k)]
        if "main" in self.open and tag in ("h2", "h3"):
            self.sections.append([a.get("id", ""), "", ""])

    def handle_endtag(self, tag):
        if tag not in self.open: return
        last = len(self.open) - 1 - self.open[::-1].index(tag)
        del self.open[last:]

    def handle_data(self, data):
        inside = {*self.open}
        if "main" not in inside or inside & {"script", "style", "annotation"}: return
        self.sections[-1][1 if inside & {"h2", "h3"} else 2] += data
        if not inside & {"pre", "code"}: self.stray += self.STRAY.findall(data)


def in_repository(
    link: str,  # path and anchor, from the top of the repository
) -> str:  # what is wrong; empty if nothing
    "Whether a file of the repository is there, and long enough for the line that the link names"
    path, _, anchor = link.partition("#")
    if not (ROOT / path).exists(): return "link to a missing file"
    if not path.endswith(".py") or not anchor: return ""
    line = re.fullmatch(r"L(\d+)", anchor)
    if not line: return "link to no line"
    lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
    return "" if 1 <= int(line[1]) <= lines else "link behind the last line"


def check_links(
    page: Page,               # whose links
    scans: dict[str, Scan],   # of all pages
    site: Path,               # folder of the pages
    config: dict,             # of the site
) -> list[str]:
    "Links of a page that lead nowhere: a missing file, anchor, or line of the repository"
    website = config["website"]
    blob = f"{website['repo-url']}/blob/{website['repo-branch']}/"
    bad = []
    for link in scans[str(page.target)].links:
        if link.startswith(blob):
            wrong = in_repository(link.removeprefix(blob))
            if wrong: bad.append(f"{wrong}: {link}")
            continue
        if re.match(r"[a-z]+:|//", link): continue
        path, _, anchor = link.partition("#")
        goal = os.path.normpath(page.target.parent / path) if path else str(page.target)
        if not (site / goal).is_file():
            bad.append(f"broken link: {link}")
        elif anchor and goal in scans and anchor not in scans[goal].ids:
            bad.append(f"broken anchor: {link}")
    return bad


def processed() -> Path:
    "The folder of notebooks as nbdev processes them for Quarto"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    try: return Path(proc_nbs(n_workers=0, force=True))
    except Exception as error:
        sys.exit(f"nbdev could not process a notebook: {error}\n"
                 "nbdev runs every cell that imports something: keep imports in cells of their own")


def sidebar_problems(
    order: list[str],        # notebooks that the sidebar lists
    pages: dict[str, Page],  # notebooks that there are
) -> list[str]:
    "What is listed and missing, listed twice, or not listed"
    twice = sorted({p for p in order if order.count(p) > 1})
    return [
        *(f"listed page does not exist: {p}" for p in order if p not in pages),
        *(f"listed twice: {p}" for p in twice),
        *(f"notebook missing from the sidebar: {p}" for p in pages if p not in order),
    ]


def copy_files(
    proc: Path,  # folder of processed notebooks
    site: Path,  # emptied first
) -> None:
    "Everything of the site but the pages: pictures, style, notebooks"
    from headpursuit.dev.site import add_notebooks

    def skipped(folder, names):
        return [name for name in names if name[0] in "._" or name.endswith((".ipynb", ".yml"))]
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(proc, site, ignore=skipped)
    shutil.copy(TOOLS / "preview.css", site)
    add_notebooks(site)


def turns(
    page: Page,              # between two others
    order: list[str],        # notebooks of the sidebar
    pages: dict[str, Page],  # by the name of the notebook
) -> str:
    "Links to the page before and the page after"
    if str(page.source) not in order: return ""
    i = order.index(str(page.source))
    links = []
    for kind, j in (("previous", i - 1), ("next", i + 1)):
        if not 0 <= j < len(order): continue
        other = pages[order[j]]
        title = html.escape(other.front.get("title", ""))
        links.append(f'<a class="{kind}" href="{page.up}{other.target}">{title}</a>')
    return "".join(links)


def render(
    page: Page,              # gets Pandoc's warnings as problems
    pages: dict[str, Page],  # by the name of the notebook
    proc: Path,              # folder of processed notebooks
    config: dict,            # of the site
) -> str:
    "A page as HTML"
    website = config["website"]
    contents, site_url = website["sidebar"]["contents"], website["site-url"]
    order = [p for p in listed(contents) if p in pages]
    styles = (proc / "styles.css").read_text(encoding="utf-8")
    styled = " ".join(re.findall(r"\.([a-zA-Z][\w-]*)", styles))
    variables = dict(
        root=page.up,
        site=website["title"],
        repo=website["repo-url"],
        turn=turns(page, order, pages),
        sidebar=sidebar(contents, pages, page),
        bar=bar(website["navbar"]["left"], pages, page),
        wide="wide" if page.front.get("sidebar") is False else "",
        source=page.source,
        links=code_links(page, site_url),
        url=f"{site_url}/{page.target}",
        card=f"{site_url}/{website['image']}",
    )
    front = {key: page.front.get(key, "") for key in ("title", "description")}
    front = yaml.safe_dump(front, allow_unicode=True)
    body, warnings = pandoc(
        f"---\n{front}---\n\n{relink(page, pages, site_url)}",
        proc / page.source.parent,
        "--to=html5", "--mathml", "--standalone", f"--template={TOOLS / 'page.html'}",
        "--toc", "--toc-depth=3",
        f"--bibliography={proc / config['bibliography']}",
        "--metadata=reference-section-title:References",
        "--metadata=link-citations",
        "--metadata=lang:en",
        f"--metadata=styled:{styled}",
        *(f"--variable={key}:{value}" for key, value in variables.items()),
    )
    page.problems += warnings
    return body


def write_page(
    page: Page,  # with its pictures
    body: str,   # its HTML
    site: Path,  # folder of the pages
) -> None:
    "A page and its pictures as files"
    for name, data in {**page.files, page.target.name: body.encode()}.items():
        path = site / page.target.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_search(
    pages: dict[str, Page],  # by the name of the notebook
    scans: dict[str, Scan],  # by the name of the page
    site: Path,              # folder of the pages
) -> None:
    "What the search box looks in: address, page, heading and text of every section"
    found = []
    for page in pages.values():
        title = page.front.get("title", "")
        for anchor, heading, body in scans[str(page.target)].sections:
            address = f"{page.target}#{anchor}" if anchor else str(page.target)
            found.append([address, title, heading.strip(), " ".join(body.split())])
    script = f"const SEARCH = {json.dumps(found, ensure_ascii=False)};\n"
    (site / "search.js").write_text(script, encoding="utf-8")


def build(
    site: Path,  # folder of the pages, emptied first
) -> dict[str, list[str]]:  # problems of each file
    "Render every page"
    from headpursuit.dev.site import add_explorers
    proc = processed()
    config = read_config(proc)
    notebooks = [path for path in sorted(proc.rglob("*.ipynb"))
                 if not any(part[0] in "._" for part in path.relative_to(proc).parts)]
    pages = {str(page.source): page for page in (read_page(proc, path) for path in notebooks)}
    copy_files(proc, site)
    scans = {}
    with ThreadPoolExecutor(2) as pool:
        bodies = pool.map(lambda page: render(page, pages, proc, config), pages.values())
        for page, body in zip(pages.values(), bodies):
            write_page(page, body, site)
    add_explorers(site)
    for target in (str(page.target) for page in pages.values()):
        scans[target] = Scan((site / target).read_text(encoding="utf-8"))
    write_search(pages, scans, site)
    order = listed(config["website"]["sidebar"]["contents"])
    problems = {"_quarto.yml": sidebar_problems(order, pages)}
    for name, page in pages.items():
        stray = [f"leftover markup: {s}" for s in scans[str(page.target)].stray]
        problems[name] = page.problems + stray + check_links(page, scans, site, config)
    print(f"{len(pages)} pages in {site.name}/")
    return problems


def readme_markdown() -> str:
    "Prose and shown code of nbs/index.ipynb"
    blocks = []
    notebook = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        body = text(cell["source"])
        if cell["cell_type"] == "markdown": blocks.append(body)
        if cell["cell_type"] != "code": continue
        options, code = split_options(body)
        if code and not options.get("hide") and options.get("echo") is not False:
            blocks.append(fence(code, "python"))
    return "\n\n".join(blocks)


def badges() -> str:
    "Pictures that lead to the site, the licence and the citation; only the README has them"
    website = read_config(ROOT / "nbs")["website"]
    site = website["site-url"]
    name = site.removeprefix("https://").partition("/")[0].replace("-", "--")
    colour = "1b4965"
    goals = {
        f"site-{name}": site,
        "licence-Apache--2.0": "LICENSE",
        "cite-CITATION.cff": "CITATION.cff",
    }
    return "\n".join(
        f"[![{label.partition('-')[0]}](https://img.shields.io/badge/{label}-{colour})]({goal})"
        for label, goal in goals.items())


def readme() -> tuple[str, list[str]]:  # text, problems
    "README.md as nbs/index.ipynb has it, with links that work in the repository"
    problems = []

    def repository_path(match):
        if re.match(r"[a-z]+:|#", match[1]): return match[0]
        path = os.path.normpath(f"nbs/{match[1]}")
        if not (ROOT / path.partition("#")[0]).exists():
            problems.append(f"link to a missing file: {match[1]}")
        return f"]({path})"

    markdown = re.sub(r"\]\(([^)\s]+)\)", repository_path, readme_markdown())
    body, warnings = pandoc(
        markdown, ROOT, "--to=gfm", "--wrap=preserve", "--bibliography=nbs/references.bib",
        "--metadata=reference-section-title:References")
    leftover = re.findall(r"</?(?:div|span)[^>]*>|^:::+", body, re.M)
    problems += warnings + [f"leftover markup: {s}" for s in leftover]
    origin = "<!-- Written from nbs/index.ipynb by `python tools/preview.py readme` -->"
    title, _, rest = body.partition("\n\n")
    return f"{origin}\n\n{title}\n\n{badges()}\n\n{rest}", problems


def main() -> int:  # exit status
    "Build the preview, or write or check README.md"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="site", choices=["site", "readme"])
    parser.add_argument("--check", action="store_true",
                        help="readme: compare instead of writing")
    parser.add_argument("--out", type=Path, default=ROOT / "_preview",
                        help="site: the folder for the pages, emptied first")
    args = parser.parse_args()
    out = args.out.absolute()
    os.chdir(ROOT)
    if args.what == "site": problems = build(out)
    else:
        path = ROOT / "README.md"
        body, found = readme()
        problems = {"nbs/index.ipynb": found}
        if not args.check: path.write_text(body, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != body:
            problems["README.md"] = [
                "not what nbs/index.ipynb says: run `python tools/preview.py readme`"]
    lines = [f"{name}: {problem}" for name, found in problems.items() for problem in found]
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
