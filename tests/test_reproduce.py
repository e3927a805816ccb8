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
OPTIONS = [x for name, value in SMALL.items() for x in ('-p', name, str(value))]
COMMAND = [sys.executable, '-c', 'from headpursuit.cli import main; main()',
           'reproduce', 'question_answering', *OPTIONS]


def start(out):
    return subprocess.Popen([*COMMAND, '--out', str(out)], start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]


def kill_at_random(folder, kills, longest, rng):
    "Start a run again and again, and kill it before it ends, `kills` times"
    while kills:
        process, begin = start(folder), time.time()
        try:
            process.communicate(timeout=rng.uniform(.1, .7) * longest)
            (folder / 'question_answering.ipynb').unlink()  # it got to the end: take that away
            longest = time.time() - begin  # the machine is less busy than it was
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills -= 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='kills a process group')
def test_ten_kills_change_nothing(tmp_path):
    begin = time.time()
    finish(start(tmp_path / 'calm'))
    rough = tmp_path / 'rough'
    kill_at_random(rough, 10, time.time() - begin, random.Random(0))
    finish(start(rough))
    results = [pd.read_parquet(f / 'results.parquet') for f in (tmp_path / 'calm', rough)]
    pd.testing.assert_frame_equal(*results)
    assert (rough / 'question_answering.ipynb').exists() and not [*rough.glob('*.part*')]
    changed = subprocess.run([*COMMAND, '--out', str(rough), '-p', 'seed', '5'],
                             capture_output=True, text=True)
    assert changed.returncode == 2 and 'other settings' in changed.stderr
