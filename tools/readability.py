"""How dense the exported code of nbdev notebooks is, in a table: one column for each folder.

    python tools/readability.py                        the notebooks in nbs/
    python tools/readability.py nbs ../claudette ...   several projects side by side
    python tools/readability.py nbs/00_pursuit.ipynb   one notebook

What is measured: every cell marked `#| export`, without its directives and imports. A line is one
that is not blank. The standard library is enough to run this.
"""
import argparse
import ast
import io
import json
import re
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

EXPORTED = re.compile(r"^\s*#\s*\|\s*exports?i?\b", re.M)
NOT_PYTHON = re.compile(r"^\s*(#\s*\||[%!])")  # directives, magics and shell commands
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Cell:
    "What is counted of one exported cell"
    lines: list[str]        # without blank lines, directives and imports
    definitions: int        # functions and classes at the cell's top level
    nodes: int              # of the syntax tree
    unrelated: int          # assignments such as `a, b = x, y`
    parameters: list[bool]  # of every function and method: has it a comment of its own?
    where: str              # notebook and number of the cell

    @property
    def characters(self) -> int:
        return sum(map(len, self.lines)) + len(self.lines) - 1


def exported_cells(
    notebook: Path,  # an .ipynb file
) -> list[tuple[int, str]]:  # number of the cell in its notebook, source
    "The sources of a notebook's exported cells"
    found = []
    for i, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and EXPORTED.search(source):
            found.append((i, source))
    return found


def without_imports(
    source: str,  # of a cell
) -> str:
    "The source with its imports, directives and magics blanked out, so that line numbers stay"
    lines = ["" if NOT_PYTHON.match(line) else line.rstrip() for line in source.splitlines()]
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1:node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


def is_unrelated(
    node: ast.AST,  # any node of a syntax tree
) -> bool:
    "Whether this is an assignment of several values to several names, other than a swap"
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
        return False
    target = node.targets[0]
    if not isinstance(target, ast.Tuple) or len(target.elts) != len(node.value.elts):
        return False
    return {ast.unparse(t) for t in target.elts}.isdisjoint(map(ast.unparse, node.value.elts))


def functions(
    tree: ast.Module,  # a cell's syntax tree
) -> list[ast.FunctionDef]:
    "Functions at the top level, and methods of its classes"
    found = [node for node in tree.body if isinstance(node, FUNCTIONS)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found += [method for method in node.body if isinstance(method, FUNCTIONS)]
    return found


def commented_parameters(
    function: ast.FunctionDef,  # from a cell's syntax tree
    comments: set[int],         # numbers of the lines that end in a comment or are one
) -> list[bool]:
    "Whether each parameter but `self` has a comment of its own, as nbdev reads them"
    a = function.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    every = [p for p in every if p is not None]
    last_on_line = {p.lineno: p.arg for p in sorted(every, key=lambda p: p.col_offset)}
    return [
        last_on_line[p.lineno] == p.arg and bool({p.lineno, p.end_lineno} & comments)
        for p in every if p.arg not in ("self", "cls")
    ]


def read_cell(
    source: str,  # of an exported cell
    where: str,   # notebook and number of the cell
) -> Cell | None:  # None if nothing is left without the imports
    "Everything that is counted of one cell"
    code = without_imports(source)
    tree = ast.parse(code)
    if not tree.body:
        return None
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    parameters = [c for f in functions(tree) for c in commented_parameters(f, comments)]
    return Cell(
        lines=[line for line in code.splitlines() if line.strip()],
        definitions=sum(isinstance(node, DEFINITIONS) for node in tree.body),
        nodes=sum(1 for _ in ast.walk(tree)),
        unrelated=sum(map(is_unrelated, ast.walk(tree))),
        parameters=parameters,
        where=where,
    )


def read_cells(
    path: Path,  # a notebook, or a folder of them
) -> list[Cell]:
    "The exported cells of every notebook of a folder"
    notebooks = [path] if path.is_file() else sorted(path.rglob("*.ipynb"))
    cells = []
    for notebook in notebooks:
        if any(part[0] in "._" for part in notebook.relative_to(path).parts):
            continue  # checkpoints, and what nbdev writes on the way to a site
        for i, source in exported_cells(notebook):
            try:
                cells.append(read_cell(source, f"{notebook.name} [{i}]"))
            except SyntaxError as error:
                print(f"{notebook.name} [{i}] left out: {error}", file=sys.stderr)
    return [cell for cell in cells if cell]


def percentile(
    values: list[float],  # at least one
    percent: int,         # 0 to 100
) -> float:
    "The value that so many per cent do not exceed"
    return sorted(values)[max(0, -(-percent * len(values) // 100) - 1)]


def measures(
    cells: list[Cell],  # at least one
) -> dict[str, str]:  # what is measured, how it is written in the table
    "The figures of a folder"
    lines = [line for cell in cells for line in cell.lines]
    lengths = [len(cell.lines) for cell in cells]
    parameters = [p for cell in cells for p in cell.parameters]
    long = {n: 100 * mean(len(line) > n for line in lines) for n in (100, 120)}
    return {
        "exported cells": f"{len(cells)}",
        "lines of a cell: median": f"{median(lengths):g}",
        "lines of a cell: 90 % have at most": f"{percentile(lengths, 90)}",
        "lines of a cell: longest": f"{max(lengths)}",
        "characters of a cell: median": f"{median(c.characters for c in cells):,.0f}",
        "definitions of a cell: mean": f"{mean(c.definitions for c in cells):.1f}",
        "cells with more than two definitions": f"{sum(c.definitions > 2 for c in cells)}",
        "characters of a line: mean": f"{mean(map(len, lines)):.0f}",
        "syntax nodes of a line: mean": f"{sum(c.nodes for c in cells) / len(lines):.1f}",
        "lines over 100 characters": f"{long[100]:.1f} %",
        "lines over 120 characters": f"{long[120]:.1f} %",
        "unrelated assignments in one line, per 100 lines":
            f"{100 * sum(c.unrelated for c in cells) / len(lines):.1f}",
        "parameters with a comment of their own": f"{sum(parameters)} of {len(parameters)}",
    }


def table(
    columns: dict[str, dict[str, str]],  # a folder's name, its figures
) -> str:
    "The figures as a Markdown table"
    rows = [["", *columns]]
    rows += [[name, *(column[name] for column in columns.values())]
             for name in next(iter(columns.values()))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    written = []
    for row in rows:
        first, *rest = [cell.ljust(width) for cell, width in zip(row, widths)]
        written.append(f"| {' | '.join([first, *rest])} |")
    return "\n".join(written)


def main() -> int:  # exit status
    "Print the table, and the longest cells if asked"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="*", type=Path, default=[Path("nbs")])
    parser.add_argument("--longest", type=int, default=0, metavar="N",
                        help="list the N longest cells of each folder as well")
    args = parser.parse_args()
    cells = {str(path): read_cells(path) for path in args.path}
    for path, found in cells.items():
        if not found:
            print(f"no exported cell in {path}: is it a folder of nbdev notebooks?",
                  file=sys.stderr)
            return 1
    print(table({path: measures(found) for path, found in cells.items()}))
    for found in cells.values():
        for cell in sorted(found, key=lambda c: -len(c.lines))[:args.longest]:
            print(f"{len(cell.lines):4} lines, {cell.characters:5,} characters: {cell.where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
