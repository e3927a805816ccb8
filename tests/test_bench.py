"The benchmarks as they run on a GPU, on a make-believe one: all layers, no tensor left on the CPU"
from dataclasses import replace

import pytest
import torch

from headpursuit.dev.bench import (
    SHAPES, Machine, bench_atlas, bench_capture, bench_one_head, bench_scoring, machine,
    precision_errors, shrunk,
)

SHAPE = replace(shrunk(SHAPES['Mistral-7B'], .01), layers=2)


def test_benchmarks_follow_the_model_to_its_device():
    away = pytest.importorskip('away', exc_type=ImportError)
    on = Machine(away.DEVICE, dict.fromkeys((torch.float32, torch.float64), 1e9), 1e9)
    with away.present():  # each compares its supports or scores with the literal algorithm's
        rows = [
            bench_scoring(SHAPE, on, n=50),
            bench_atlas(SHAPE, on, n=50),
            bench_atlas(SHAPE, on, n=50, rule='magnitude'),
            *bench_one_head(SHAPE, on, n=50),
        ]
        errors = precision_errors(SHAPE, away.DEVICE)
        overhead = bench_capture(replace(SHAPE, layers=1, heads=4), on, pairs=1)
    assert all(r['ratio'] > 0 and r['floor_seconds'] > 0 for r in rows)
    assert errors.same_first_token.iloc[0] == 1
    assert errors.largest_error.max() < .1
    assert '16,384 tokens' in overhead.what[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match='no GPU'): machine('cuda')
