"The lessons of the course: laid out alike, and their exercises can be failed and solved"
import ast
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / 'nbs' / 'learn'
PAGES = sorted(FOLDER.glob('*.ipynb'))
LESSONS = [p for p in PAGES if p.stem[0].isdigit()]
every_page = pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
every_lesson = pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)

TASK = re.compile(r'### Exercise (\d+): \S')
FOLDED = re.compile(r'<details>\s*<summary>(\w+)</summary>\n\n(.*?)\n\n</details>', re.S)
PYTHON = re.compile(r'^```python\n(.*?)^```$', re.S | re.M)


def cells(path):
    "The cells of a notebook, each with its source as one string"
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [cell | dict(source=''.join(cell['source'])) for cell in found]


def text(path, kind='markdown'):
    "All Markdown of a page"
    return '\n\n'.join(c['source'] for c in cells(path) if c['cell_type'] == kind)


def exercises(found):
    "Where the tasks of a lesson stand: number, index of the cell"
    for i, cell in enumerate(found):
        task = TASK.match(cell['source'])
        if cell['cell_type'] == 'markdown' and task: yield int(task[1]), i


def solution(source):
    "The Python of a folded solution"
    return '\n'.join(PYTHON.findall(dict(FOLDED.findall(source))['Solution']))


def calls_check(source, n):
    "Whether the last line of a cell calls the check of an exercise"
    last = ast.parse(source).body[-1]
    return (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
            and getattr(last.value.func, 'id', '') == f'check_{n}')


@every_page
def test_page_reads_well_in_jupyter(path):
    "JupyterLab shows Quarto's boxes, citations and references as they are typed"
    prose = re.sub(r'```.*?```|`[^`]*`', '', text(path), flags=re.S)
    assert not re.findall(r'^:::.*|\[@.*?\]|@(?:fig|tbl|eq)-[\w-]*|\{#[\w-]+.*?\}', prose, re.M)


@every_lesson
def test_lesson_begins_and_ends_alike(path):
    "Its place in the course, goals, needs and minutes; a recap and three questions"
    found = cells(path)
    number = int(path.stem[:2])
    assert re.match(r'# .+\n\n> \S', found[0]['source'])
    assert re.match(rf'\*\*Lesson {number} of 10\*\* · about \d+ minutes\n', found[1]['source'])
    assert '**You will be able to**\n\n- ' in found[1]['source']
    assert '**You need** ' in found[1]['source']
    tail = text(path).split('\n## Recap\n')
    assert len(tail) == 2
    recap, questions = tail[1].split('\n## Three questions\n')
    assert recap.count('\n- ') >= 2
    assert re.findall(r'^\*\*(\d)\.\*\* ', questions, re.M) == ['1', '2', '3']
    answers = FOLDED.findall(questions)
    assert [title for title, _ in answers] == ['Answer'] * 3
    assert all(len(answer) > 20 for _, answer in answers)


@every_lesson
def test_lesson_links_to_the_next(path):
    following = LESSONS[LESSONS.index(path) + 1:]
    if following:
        assert f'({following[0].name})' in cells(path)[-1]['source']


@every_lesson
def test_exercises_are_laid_out_alike(path):
    "Task, folded check, stub that calls it, hint and solution"
    found = cells(path)
    numbers = [n for n, _ in exercises(found)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 2
    for n, i in exercises(found):
        check, stub, folded = found[i + 1:i + 4]
        assert check['cell_type'] == stub['cell_type'] == 'code'
        assert check['source'].startswith('#| code-fold: true\n')
        assert check['metadata'].get('jupyter') == dict(source_hidden=True)
        assert f'@exercise\ndef check_{n}(' in check['source']
        assert '...' in stub['source'] and not stub['metadata'].get('jupyter')
        assert calls_check(stub['source'], n)
        parts = FOLDED.findall(folded['source'])
        assert [title for title, _ in parts] == ['Hint', 'Solution']
        assert solution(folded['source'])


@every_lesson
def test_checks_say_what_is_wrong(path):
    "No assertion of a check is without a sentence"
    for _, i in exercises(cells(path)):
        tree = ast.parse(cells(path)[i + 1]['source'])
        asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        assert asserts and all(node.msg is not None for node in asserts)


@every_lesson
def test_no_hidden_cell_gives_the_answer(path):
    "But the one that installs the library in Colab"
    hidden = [c['source'] for c in cells(path) if '#| hide' in c['source']]
    assert all('google.colab' in source for source in hidden)


@pytest.mark.slow
@every_lesson
def test_stubs_fail_and_solutions_pass(path):
    "One run of a lesson, with the solution of each exercise in a cell behind its stub"
    nbformat = pytest.importorskip('nbformat', reason='lessons need nbformat and nbclient')
    nbclient = pytest.importorskip('nbclient', reason='lessons need nbformat and nbclient')
    lesson = nbformat.read(path, as_version=4)
    stubs = [i + 2 for _, i in exercises(lesson.cells)]
    for i in reversed(stubs):
        call = lesson.cells[i].source.rstrip().splitlines()[-1]
        solved = solution(lesson.cells[i + 1].source) + call
        lesson.cells.insert(i + 1, nbformat.v4.new_code_cell(solved))
    place = dict(metadata=dict(path=str(path.parent)))
    nbclient.NotebookClient(lesson, timeout=300, kernel_name='python3', resources=place).execute()
    for shift, i in enumerate(stubs):
        assert printed(lesson.cells[i + shift]).startswith('Not yet: ')
        assert printed(lesson.cells[i + shift + 1]).endswith('Right.\n')


def printed(cell):
    "The text that a cell printed"
    return ''.join(o.text for o in cell.outputs if o.output_type == 'stream' and o.name == 'stdout')
