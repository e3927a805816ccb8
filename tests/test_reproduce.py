"An experiment that is killed again and again ends with the results of an undisturbed run"
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

SMALL = dict(ks='[1, 2]', n_train=48, n_test=32, n_draws=2, n_null=2)
COMMAND = [sys.executable, '-c', 'from headpursuit.cli import main; main()', 'reproduce', 'question_answering', *(x for k, v in SMALL.items() for x in ('-p', k, str(v)))]


def start(out): return subprocess.Popen([*COMMAND, '--out', str(out)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='kills a process group')
def test_ten_kills_change_nothing(tmp_path):
    begin = time.time()
    finish(start(tmp_path / 'calm'))
    whole, rng = time.time() - begin, random.Random(0)
    kills = 0
    while kills < 10:
        process = start(tmp_path / 'rough')
        try: process.communicate(timeout=rng.uniform(.1, .7) * whole)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); process.communicate(); kills += 1
        else: (tmp_path / 'rough' / 'question_answering.ipynb').unlink()  # it got to the end before its time: take that away
    finish(start(tmp_path / 'rough'))
    calm, rough = (pd.read_parquet(tmp_path / x / 'results.parquet') for x in ('calm', 'rough'))
    pd.testing.assert_frame_equal(calm, rough)
    assert (tmp_path / 'rough' / 'question_answering.ipynb').exists() and not list((tmp_path / 'rough').glob('*.part.ipynb'))
    changed = subprocess.run([*COMMAND, '--out', str(tmp_path / 'rough'), '-p', 'seed', '5'], capture_output=True, text=True)
    assert changed.returncode == 2 and 'other settings' in changed.stderr
