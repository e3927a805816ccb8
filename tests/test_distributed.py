"Capture on several workers: exact, and whole again after a kill"
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from headpursuit import HeadModel, HeadStats, capture, pocket_path
from headpursuit.capture import PROVENANCE
from headpursuit.pocket.reading import reading_questions

WORKER = '''
import sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
from headpursuit import HeadModel, pocket_path
from headpursuit.distributed import capture_shards
from headpursuit.pocket.reading import reading_questions
folder = sys.argv[1]
slow = float(sys.argv[2])
dist.init_process_group('gloo')
model = HeadModel.from_pretrained(pocket_path())
forward = model.model.model.forward
def delayed(*a, **k):
    time.sleep(slow)
    return forward(*a, **k)
model.model.model.forward = delayed
data = reading_questions('train', 8, seed=3).rename_column('prompt', 'text')
stats = capture_shards(model, data, folder, n_shards=8, batch_size=4, progress=False)
if dist.get_rank() == 0: stats.save(folder + '/stats.safetensors')
dist.destroy_process_group()
'''

# all workers are here: nobody's name need be looked up
LOCAL = dict(GLOO_SOCKET_IFNAME='lo0' if sys.platform == 'darwin' else 'lo')
needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name == 'nt', reason='needs gloo')


def launch(script, folder, workers, slow=0.):
    "Start so many workers; `slow` seconds are added to each forward pass"
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                '--local-addr', '127.0.0.1', '--nproc-per-node', str(workers),
                '--max-restarts', '3']  # gloo's threads may outlive a worker, and take it along
    return subprocess.Popen(
        [*torchrun, str(script), str(folder), str(slow)], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | LOCAL)


def finish(process):
    "Wait until it has ended well"
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]


@pytest.fixture(scope='module')
def single():
    "Statistics from one plain process, in the same shards and batches"
    data = reading_questions('train', 8, seed=3)
    model = HeadModel.from_pretrained(pocket_path())
    shards = [data.shard(8, i, contiguous=True)['prompt'] for i in range(8)]
    return sum(capture(model, shard, batch_size=4, progress=False) for shard in shards)


def same(a, b):
    "The same samples, from the same source, and the same sums but for rounding"
    for name in ('count', 'prompt_hash', *PROVENANCE):
        assert getattr(a, name) == getattr(b, name), name
    for x, y in [(a.mean, b.mean), (a.scatter, b.scatter)]:
        assert (x - y).norm() <= 1e-10 * y.norm()


@pytest.mark.slow
@needs_gloo
@pytest.mark.parametrize('workers', [1, 2, 4])
def test_any_number_of_workers_gives_the_same_statistics(workers, tmp_path, single):
    script = tmp_path / 'worker.py'
    script.write_text(WORKER)
    finish(launch(script, tmp_path / 'shards', workers))
    same(HeadStats.load(tmp_path / 'shards' / 'stats.safetensors'), single)


@pytest.mark.slow
@needs_gloo
def test_a_killed_run_resumes_without_losing_or_repeating_a_sample(tmp_path, single):
    script = tmp_path / 'worker.py'
    script.write_text(WORKER)
    shards = tmp_path / 'shards'
    first = launch(script, shards, 2, slow=.4)
    deadline = time.time() + 120
    while len(list(shards.glob('shard-*.safetensors'))) < 2:
        assert first.poll() is None and time.time() < deadline, first.stdout.read()[-3000:]
        time.sleep(.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = len(list(shards.glob('shard-*.safetensors')))
    assert 2 <= done < 8 and not (shards / 'stats.safetensors').exists()
    finish(launch(script, shards, 1))  # and with another number of workers
    same(HeadStats.load(shards / 'stats.safetensors'), single)
