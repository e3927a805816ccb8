"The measure of density counts right on a notebook small enough to count by hand"
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / 'tools' / 'readability.py'

FUNCTION = '''#| export
import os, sys
from math import (
    pi,
    tau)

def area(
    r: float,  # radius
    scale: float = 1.,
) -> float:  # in square metres
    "The area of a circle"
    return pi * r**2 * scale
'''
CLASS = '''#| export
class Pair:
    "Two values"
    def __init__(self, a, b): # one comment for two
        self.a, self.b = a, b
    def swap(self):
        self.a, self.b = self.b, self.a
    def halves(self, text):
        first, second = text.split()
        return first, second

def one(): return 1
def two(): return 2
'''
CELLS = [
    ('markdown', '#| export in prose is no directive'),
    ('code', FUNCTION),
    ('code', '#| export\nimport json  # nothing but imports: no cell'),
    ('code', 'hidden = 1  # not exported'),
    ('code', CLASS),
]


def write(folder, cells):
    "A notebook of these cells"
    cells = [{'cell_type': kind, 'source': source.splitlines(keepends=True)}
             for kind, source in cells]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'nb.ipynb').write_text(json.dumps({'cells': cells}), encoding='utf-8')
    return folder


def figures(*paths):
    "What the tool prints: the first column, and each folder's"
    done = subprocess.run([sys.executable, str(TOOL), *map(str, paths)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip('|').split(' | ')]
            for line in done.stdout.splitlines()]
    return [dict(zip([row[0] for row in rows], column)) for column in zip(*rows)][1:]


def test_counts_of_a_tiny_notebook(tmp_path):
    (found,) = figures(write(tmp_path / 'nbs', CELLS))
    lines = [line for source, skipped in ((FUNCTION, 5), (CLASS, 1))
             for line in source.splitlines()[skipped:] if line]
    assert len(lines) == 6 + 11
    assert found['exported cells'] == '2'
    assert found['lines of a cell: median'] == '8.5'
    assert found['lines of a cell: 90 % have at most'] == '11'
    assert found['lines of a cell: longest'] == '11'
    assert found['definitions of a cell: mean'] == '2.0'
    assert found['cells with more than two definitions'] == '1'
    assert found['characters of a line: mean'] == f'{sum(map(len, lines)) / len(lines):.0f}'
    assert found['lines over 100 characters'] == '0.0 %'
    # `self.a, self.b = a, b`; neither the swap nor what a call returns
    assert found['unrelated assignments in one line, per 100 lines'] == f'{100 / len(lines):.1f}'
    # r, and b, which alone can own the comment of the line that it shares; not scale, a and text
    assert found['parameters with a comment of their own'] == '2 of 5'


@pytest.mark.parametrize('length, over_100, over_120', [(100, 0, 0), (101, 1, 0), (121, 1, 1)])
def test_long_lines(tmp_path, length, over_100, over_120):
    line = 'x = ' + '1' * (length - 4)
    (found,) = figures(write(tmp_path, [('code', f'#| export\n{line}\ny = 1')]))
    assert found['lines over 100 characters'] == f'{50 * over_100:.1f} %'
    assert found['lines over 120 characters'] == f'{50 * over_120:.1f} %'
    assert found['syntax nodes of a line: mean'] == '4.5'  # a module; twice assign, name, store, 1


def test_folders_side_by_side_and_one_without_notebooks(tmp_path):
    a = write(tmp_path / 'a', CELLS)
    b = write(tmp_path / 'b', CELLS[:2])
    write(a / '.ipynb_checkpoints', CELLS)  # what Jupyter keeps does not count
    assert [f['exported cells'] for f in figures(a, b)] == ['2', '1']
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path / 'none')],
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert 'no exported cell' in done.stderr
