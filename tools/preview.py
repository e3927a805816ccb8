"""Preview and check the site with Pandoc alone, from the two things Quarto reads: `_quarto.yml` and nbdev's `_proc`.

    python tools/preview.py                  write _preview/, list every problem, fail if there is one
    python tools/preview.py --out FOLDER     write the pages to another folder
    python tools/preview.py readme           write README.md from nbs/index.ipynb
    python tools/preview.py readme --check   fail if README.md is not what that command would write

Only the Quarto markup that the notebooks use is understood; anything else is a problem, not a guess.
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
CELL_OPTIONS = {"label", "fig-cap", "fig-alt", "tbl-cap", "echo", "output", "include", "eval", "warning", "error",
                "code-fold", "code-summary", "fig-width", "fig-height", "classes", "column"}
FRONT_MATTER = {"title", "description", "output-file", "skip_showdoc", "skip_exec", "toc", "image", "author", "date", "code-links"}
OUTPUT_KINDS = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain")


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
    def up(self) -> str: return "../" * len(self.target.parent.parts)


def text(source: str | list[str]) -> str:
    "A notebook's source or output as one string"
    return source if isinstance(source, str) else "".join(source)


def split_options(source: str) -> tuple[dict, str]:  # options, code
    "The `#| key: value` lines at the top of a code cell, and the rest"
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    options = {}
    for line in lines[:n]:
        key, sep, value = line[2:].strip().partition(":")
        options[key.strip()] = yaml.safe_load(value) if sep else True
    return options, "\n".join(lines[n:]).strip("\n")


def fence(body: str, attributes: str) -> str:
    "A fenced code block, with a fence longer than any inside"
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{ticks}{attributes}\n{body.rstrip()}\n{ticks}"


def output_markdown(output: dict, options: dict, page: Page, stem: str) -> str:
    "One stored output of a code cell as markdown; pictures go to the page's files"
    if output["output_type"] == "error":
        page.problems.append(f"stored output is an error: {output['ename']}: {output['evalue']}")
        return ""
    asis = options.get("output") == "asis"
    if output["output_type"] == "stream":
        body = text(output["text"])
        return body if asis else fence(body, "{.cell-output " + f".{output['name']}" + "}")
    data = output.get("data", {})
    kind = next((k for k in OUTPUT_KINDS if k in data), None)
    if kind is None or any("widget" in k for k in data):
        page.problems.append(f"unknown kind of output: {', '.join(data)}")
        return ""
    body = text(data[kind])
    if kind == "text/markdown": return body
    if kind == "text/html": return fence(body, "{=html}")
    if kind == "text/plain": return body if asis else fence(body, "{.cell-output}")
    alt = options.get("fig-alt")
    if not alt: page.problems.append(f"picture without fig-alt: {options.get('label', 'unlabelled')}")
    suffix = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}[kind]
    name = f"{stem}_files/{len(page.files) + 1}.{suffix}"
    page.files[name] = body.encode() if suffix == "svg" else base64.b64decode(body)
    quoted = re.sub(r'(["\\])', r"\\\1", str(alt))
    return f'![]({name}){{fig-alt="{quoted}"}}'


def code_markdown(cell: dict, page: Page, stem: str) -> str:
    "A code cell and its outputs as markdown"
    options, code = split_options(text(cell["source"]))
    for key in options.keys() - CELL_OPTIONS: page.problems.append(f"unknown cell option: {key}")
    if options.get("include") is False: return ""
    outputs = [] if options.get("output") is False else cell.get("outputs", [])
    blocks = [b for b in (output_markdown(o, options, page, stem) for o in outputs) if b]
    label, caption = str(options.get("label", "")), options.get("fig-cap") or options.get("tbl-cap")
    if label.startswith(("fig-", "tbl-")) and blocks:
        wanted = "![](" if label.startswith("fig-") else "{=html}"
        i = next((i for i, b in enumerate(blocks) if wanted in b), len(blocks) - 1)
        blocks[i] = f":::: {{#{label}}}\n{blocks[i]}\n\n{caption or ''}\n::::"
    if options.get("echo") is not False and code:
        shown = fence(code, "{.python}")
        if options.get("code-fold"):
            summary = html.escape(options.get("code-summary", "Code"))
            shown = f"<details><summary>{summary}</summary>\n\n{shown}\n\n</details>"
        blocks.insert(0, shown)
    body = "\n\n".join(blocks)
    return body if options.get("output") == "asis" or not body else f"::::: {{.cell}}\n{body}\n:::::"


def read_page(proc: Path, path: Path) -> Page:
    "A processed notebook as a page"
    source = PurePosixPath(path.relative_to(proc).as_posix())
    page = Page(source, source.with_suffix(".html"), {}, "", {}, [])
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        body = text(cell["source"])
        front = re.fullmatch(r"---\n(.+?)\n---\s*", body, re.S) if cell["cell_type"] == "raw" else None
        if front:
            page.front |= yaml.safe_load(front[1])
            page.target = source.with_name(page.front.get("output-file", page.target.name))
        elif cell["cell_type"] == "markdown": blocks.append(body)
        elif cell["cell_type"] == "code": blocks.append(code_markdown(cell, page, page.target.stem))
        else: page.problems.append(f"raw cell: {body[:40]!r}")
    for key in page.front.keys() - FRONT_MATTER: page.problems.append(f"unknown front matter: {key}")
    if "title" not in page.front: page.problems.append("no title: start the notebook with `# Title` and `> description`")
    page.markdown = "\n\n".join(b for b in blocks if b)
    return page


def read_config(folder: Path) -> dict:
    "`_quarto.yml` with the `website` part of its metadata files merged in"
    config = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))
    for name in config.get("metadata-files", []):
        extra = yaml.safe_load((folder / name).read_text(encoding="utf-8")) or {}
        config["website"] = extra.get("website", {}) | config["website"]
    return config


def listed(contents: list) -> list[str]:
    "Every notebook of the sidebar, in order"
    return [p for item in contents for p in ([item] if isinstance(item, str) else listed(item.get("contents", [])))]


def sidebar(contents: list, pages: dict[str, Page], here: Page) -> str:
    "The sidebar as nested lists; the section of this page is open"
    rows = []
    for item in contents:
        if isinstance(item, str):
            if item not in pages: continue
            page = pages[item]
            mark = ' aria-current="page"' if page is here else ""
            rows.append(f'<li><a href="{here.up}{page.target}"{mark}>{html.escape(page.front.get("title", item))}</a></li>')
        else:
            is_open = " open" if str(here.source) in listed(item["contents"]) else ""
            inner = sidebar(item["contents"], pages, here)
            rows.append(f'<li><details{is_open}><summary>{html.escape(item["section"])}</summary>{inner}</details></li>')
    return f"<ul>{''.join(rows)}</ul>"


def relink(page: Page, pages: dict[str, Page], site_url: str) -> str:
    "The page's markdown with links to notebooks, and to the published site, turned into links between the local pages"
    def local(match):
        goal = os.path.normpath(page.source.parent / match[1])
        if goal not in pages: return match[0]  # stays a link to a file that is not there, which the link check reports
        return f"]({page.up}{pages[goal].target}{match[2] or ''})"
    markdown = page.markdown.replace(f"]({site_url}/", f"]({page.up}")
    return re.sub(r"\]\(([^)\s#:]+\.ipynb)(#[^)\s]*)?\)", local, markdown)


def code_links(page: Page, site_url: str) -> str:
    "The page's `code-links` as HTML; what the published site offers for download lies beside the local page, too"
    def link(item):
        local = item["href"].startswith(f"{site_url}/")
        href = item["href"].replace(f"{site_url}/", page.up) if local else item["href"]
        return f'<a class="{item["icon"]}" href="{html.escape(href)}"{" download" if local else ""}>{html.escape(item["text"])}</a>'
    return "".join(map(link, page.front.get("code-links", [])))


def pandoc(markdown: str, cwd: Path, *arguments: str) -> tuple[str, list[str]]:  # output, problems
    "Pandoc's output, with each of its warnings as a problem"
    done = subprocess.run([*PANDOC, *arguments], input=markdown, text=True, encoding="utf-8", capture_output=True, cwd=cwd)
    if done.returncode: raise SystemExit(done.stderr)
    warnings = re.split(r"^\[WARNING\](?: Scripting warning at .+?:)?", done.stderr, flags=re.M)
    return done.stdout, [" ".join(w.split()) for w in warnings if w.strip()]


class Scan(HTMLParser):
    "What the checks and the search need of a finished page: ids, links, stray markup, and the text of each section"
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
        if "main" in self.open and tag in ("h2", "h3"): self.sections.append([a.get("id", ""), "", ""])

    def handle_endtag(self, tag):
        if tag in self.open: del self.open[len(self.open) - 1 - self.open[::-1].index(tag):]

    def handle_data(self, data):
        if "main" not in self.open or {"script", "style", "annotation"} & {*self.open}: return
        self.sections[-1][1 if {"h2", "h3"} & {*self.open} else 2] += data
        if not {"pre", "code"} & {*self.open}: self.stray += re.findall(r":::+|\{#[\w-]+\}?|\{\{<.*|(?<!\S)#{2,6} .*", data)


def check_links(page: Page, scans: dict[str, Scan], site: Path, config: dict) -> list[str]:
    "Links of a page that lead nowhere: to a missing file, a missing anchor, or a missing file of the repository"
    bad, blob = [], f"{config['website']['repo-url']}/blob/{config['website']['repo-branch']}/"
    for link in scans[str(page.target)].links:
        path, _, anchor = link.partition("#")
        if link.startswith(blob):
            if not (ROOT / path.removeprefix(blob)).exists(): bad.append(f"link to a missing file: {link}")
            continue
        if re.match(r"[a-z]+:|//", link): continue
        goal = os.path.normpath(page.target.parent / path) if path else str(page.target)
        if not (site / goal).is_file(): bad.append(f"broken link: {link}")
        elif anchor and goal in scans and anchor not in scans[goal].ids: bad.append(f"broken anchor: {link}")
    return bad


def build(site: Path) -> dict[str, list[str]]:  # problems of each file
    "Render every page to `site` and return the problems"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    from headpursuit.dev.site import add_notebooks
    refresh_quarto_yml()
    try: proc = Path(proc_nbs(n_workers=0, force=True))
    except Exception as error:
        sys.exit(f"nbdev could not process a notebook: {error}\nnbdev runs every cell that imports something: keep imports in cells of their own")
    config = read_config(proc)
    contents, site_url = config["website"]["sidebar"]["contents"], config["website"]["site-url"]
    hidden = lambda p: any(part[0] in "._" for part in p.relative_to(proc).parts)
    pages = {str(p.source): p for p in (read_page(proc, f) for f in sorted(proc.rglob("*.ipynb")) if not hidden(f))}
    order = listed(contents)
    problems = {"_quarto.yml": [f"listed page does not exist: {p}" for p in order if p not in pages]
                + [f"listed twice: {p}" for p in sorted({p for p in order if order.count(p) > 1})]
                + [f"notebook missing from the sidebar: {p}" for p in pages if p not in order]}

    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(proc, site, ignore=lambda folder, names: [n for n in names if n[0] in "._" or n.endswith((".ipynb", ".yml"))])
    shutil.copy(TOOLS / "preview.css", site)
    add_notebooks(site)
    styled = re.findall(r"\.([a-zA-Z][\w-]*)", (proc / "styles.css").read_text(encoding="utf-8"))
    order = [p for p in order if p in pages]

    def render(page: Page) -> str:
        front = {k: page.front.get(k, "") for k in ("title", "description")}
        i = order.index(str(page.source)) if str(page.source) in order else None
        around = [pages[order[j]] if i is not None and 0 <= j < len(order) else None for j in ((i or 0) - 1, (i or 0) + 1)]
        turn = "".join(f'<a class="{c}" href="{page.up}{p.target}">{html.escape(p.front.get("title", ""))}</a>'
                       for c, p in zip(("previous", "next"), around) if p)
        variables = dict(root=page.up, site=config["website"]["title"], repo=config["website"]["repo-url"], turn=turn,
                         sidebar=sidebar(contents, pages, page), source=page.source, links=code_links(page, site_url),
                         url=f"{site_url}/{page.target}", card=f"{site_url}/{config['website']['image']}")
        markdown = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n\n{relink(page, pages, site_url)}"
        body, warnings = pandoc(
            markdown, proc / page.source.parent, "--to=html5", "--mathml", "--standalone", f"--template={TOOLS / 'page.html'}",
            "--toc", "--toc-depth=3", f"--bibliography={proc / config['bibliography']}", "--metadata=lang:en",
            "--metadata=reference-section-title:References", "--metadata=link-citations", f"--metadata=styled:{' '.join(styled)}",
            *(f"--variable={k}:{v}" for k, v in variables.items()))
        page.problems += warnings
        return body

    scans = {}
    with ThreadPoolExecutor(2) as pool:
        for page, body in zip(pages.values(), pool.map(render, pages.values())):
            for name, data in {**page.files, page.target.name: body.encode()}.items():
                path = site / page.target.parent / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            scans[str(page.target)] = Scan(body)
    found = []
    for page in pages.values():
        scan = scans[str(page.target)]
        page.problems += [f"leftover markup: {s}" for s in scan.stray] + check_links(page, scans, site, config)
        problems[str(page.source)] = page.problems
        found += [[str(page.target) + (a and f"#{a}"), page.front.get("title", ""), h.strip(), " ".join(t.split())]
                  for a, h, t in scan.sections]
    (site / "search.js").write_text(f"const SEARCH = {json.dumps(found, ensure_ascii=False)};\n", encoding="utf-8")
    print(f"{len(pages)} pages in {site.name}/")
    return problems


def readme() -> tuple[str, list[str]]:  # text, problems
    "README.md as nbs/index.ipynb has it: its prose and shown code, with links that work in the repository"
    problems, blocks = [], []
    for cell in json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        body = text(cell["source"])
        if cell["cell_type"] == "markdown": blocks.append(body)
        if cell["cell_type"] == "code":
            options, code = split_options(body)
            if code and not options.get("hide") and options.get("echo") is not False: blocks.append(fence(code, "python"))

    def repository_path(match):
        if re.match(r"[a-z]+:|#", match[1]): return match[0]
        path = os.path.normpath(f"nbs/{match[1]}")
        if not (ROOT / path.partition("#")[0]).exists(): problems.append(f"link to a missing file: {match[1]}")
        return f"]({path})"
    markdown = re.sub(r"\]\(([^)\s]+)\)", repository_path, "\n\n".join(blocks))
    body, warnings = pandoc(markdown, ROOT, "--to=gfm", "--wrap=preserve", "--bibliography=nbs/references.bib",
                            "--metadata=reference-section-title:References")
    problems += warnings + [f"leftover markup: {s}" for s in re.findall(r"</?(?:div|span)[^>]*>|^:::+", body, re.M)]
    return f"<!-- Written from nbs/index.ipynb by `python tools/preview.py readme` -->\n\n{body}", problems


def main() -> int:  # exit status
    "Build the preview, or write or check README.md"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="site", choices=["site", "readme"])
    parser.add_argument("--check", action="store_true", help="readme: compare instead of writing")
    parser.add_argument("--out", type=Path, default=ROOT / "_preview", help="site: the folder for the pages, emptied first")
    args = parser.parse_args()
    out = args.out.absolute()
    os.chdir(ROOT)
    if args.what == "site": problems = build(out)
    else:
        path, (body, found) = ROOT / "README.md", readme()
        problems = {"nbs/index.ipynb": found}
        if not args.check: path.write_text(body, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != body:
            problems["README.md"] = ["not what nbs/index.ipynb says: run `python tools/preview.py readme`"]
    lines = [f"{name}: {problem}" for name, found in problems.items() for problem in found]
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
