"The lessons of the course run from top to bottom, with the solutions of their exercises"
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat', reason='the lessons need nbformat and nbclient')
nbclient = pytest.importorskip('nbclient', reason='the lessons need nbclient')
LESSONS = sorted((Path(__file__).parent.parent / 'nbs' / 'learn').glob('*.ipynb'))


@pytest.mark.slow
@pytest.mark.parametrize('lesson', LESSONS, ids=lambda p: p.stem)
def test_lesson_runs(lesson):
    folder = dict(metadata=dict(path=str(lesson.parent)))
    client = nbclient.NotebookClient(
        nbformat.read(lesson, as_version=4), timeout=300, kernel_name='python3', resources=folder)
    client.execute()
