"Capture on several workers: exact, and whole again after a kill"
import os
import subprocess
import sys
import time
from uuid import uuid4

import pytest
import torch

from headpursuit import HeadModel, HeadStats, capture, pocket_path
from headpursuit.capture import PROVENANCE
from headpursuit.pocket.reading import reading_questions

WORKER = '''
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
torch.set_num_threads(1)
from headpursuit import HeadModel, pocket_path
from headpursuit.distributed import capture_shards
from headpursuit.pocket.reading import reading_questions
folder, slow, meeting = sys.argv[1:4]
rank, world = map(int, sys.argv[4:])
dist.init_process_group('gloo', init_method='file://' + meeting, timeout=timedelta(seconds=60),
                        rank=rank, world_size=world)
model = HeadModel.from_pretrained(pocket_path())
forward = model.model.model.forward
def delayed(*a, **k):
    time.sleep(float(slow))
    return forward(*a, **k)
model.model.model.forward = delayed
data = reading_questions('train', 8, seed=3).rename_column('prompt', 'text')
stats = capture_shards(model, data, folder, n_shards=8, batch_size=4, progress=False)
if rank == 0: stats.save(folder + '/stats.safetensors')
done = [Path(f'{meeting}.{i}') for i in range(world)]
done[rank].touch()
while not all(d.exists() for d in done): time.sleep(.05)  # none hangs up while another listens
os._exit(0)  # gloo's threads may outlive a worker, and take it along at its end
'''

# all workers are here: nobody's name need be looked up
LOCAL = dict(GLOO_SOCKET_IFNAME='lo0' if sys.platform == 'darwin' else 'lo')
needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name == 'nt', reason='needs gloo')


def launch(script, folder, workers, slow=0.):
    "Start so many workers; `slow` seconds are added to each forward pass"
    meeting = script.with_name(f'meeting-{uuid4().hex}')  # where they find each other
    return [subprocess.Popen(
        [sys.executable, str(script), str(folder), str(slow), str(meeting), str(rank),
         str(workers)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | LOCAL) for rank in range(workers)]


def kill(processes):
    "End all of them at once"
    for p in processes: p.kill()
    for p in processes: p.wait()


def finished(processes):
    "What was said by workers that did not end well in two minutes"
    deadline, said = time.time() + 120, []
    while time.time() < deadline and any(p.poll() is None for p in processes):
        if any(p.poll() for p in processes): break  # one has failed: the others would wait for it
        time.sleep(.1)
    for p in processes:
        ended = p.poll()
        if ended != 0:
            p.kill()
            said.append(f'exit {ended}: {p.communicate()[0][-3000:]}')
    return said


def finish(script, folder, workers):
    "Run to the end; a job on a busy machine may have to be started again, as on a cluster"
    for _ in range(3):
        said = finished(launch(script, folder, workers))
        if not said: return
    raise AssertionError('\n\n'.join(said))


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
    finish(script, tmp_path / 'shards', workers)
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
        alive = all(p.poll() is None for p in first)
        assert alive and time.time() < deadline, finished(first)
        time.sleep(.05)
    kill(first)
    done = len(list(shards.glob('shard-*.safetensors')))
    assert 2 <= done < 8 and not (shards / 'stats.safetensors').exists()
    finish(script, shards, 1)  # and with another number of workers
    same(HeadStats.load(shards / 'stats.safetensors'), single)
