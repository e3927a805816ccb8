"""Head capture beside TransformerLens, on the embedded language model.

TransformerLens brings its own versions of torch and torchvision, so it needs its own environment:

    python3 -m venv .venv-tl
    .venv-tl/bin/pip install 'transformer-lens>=4.3' -e .
    .venv-tl/bin/python tools/compare_transformerlens.py

The table goes to nbs/bench/transformerlens.csv, which the benchmark notebook shows. Both see the
same batches of random tokens. What is compared: a plain forward pass of the backbone, `capture`
(statistics of every head), and TransformerLens caching every head's z (`run_with_cache`, which also
computes logits), without and with the same statistics computed from its cache.
"""
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from headpursuit.capture import capture, stats_of
from headpursuit.dev.bench import paired
from headpursuit.generation import versions
from headpursuit.heads import HeadModel
from headpursuit.presets import pocket_path

N, T = 64, 64  # texts in a batch, tokens in a text

model = HeadModel.from_pretrained(pocket_path())
bridge = TransformerBridge.boot_transformers(
    str(pocket_path()),
    hf_model=HeadModel.from_pretrained(pocket_path()).model,
    tokenizer=model.tokenizer,
    device='cpu',
)
g = torch.Generator().manual_seed(0)
batches = [dict(input_ids=torch.randint(3, model.config.vocab_size, (N, T), generator=g))
           for _ in range(2)]


@torch.no_grad()
def forward():
    "A plain forward pass"
    for batch in batches: model.model.base_model(**batch, use_cache=False)


def ours():
    "Statistics of every head by this library"
    return capture(model, batches, positions='prompt', progress=False)


def stats_of_cache(cache):
    "The same statistics from what TransformerLens keeps of a batch"
    layers = [cache[f'blocks.{layer}.attn.hook_z'] for layer in range(model.n_layers)]
    z = [layer.reshape(N, T, model.n_heads, -1).mean(1) for layer in layers]
    return stats_of(torch.stack(z, 1), 'prompt')


@torch.no_grad()
def theirs(
    statistics: bool = False,  # or keep the cache only
):
    "Every head's z by TransformerLens, and the statistics if wanted"
    total = None
    for batch in batches:
        _, cache = bridge.run_with_cache(
            batch['input_ids'], names_filter=lambda name: name.endswith('attn.hook_z'))
        if statistics:
            found = stats_of_cache(cache)
            total = found if total is None else total + found
    return total


same = torch.allclose(ours().mean, theirs(statistics=True).mean, atol=1e-5)
assert same, 'the two do not see the same heads'
cases = {
    'capture': ours,
    'TransformerLens, cache only': theirs,
    'TransformerLens, cache and the same statistics': lambda: theirs(statistics=True),
}
rows = []
for name, f in cases.items():
    median, low, high = paired(forward, f, pairs=9)
    rows.append(dict(what=f'{name} / forward pass', ratio=median, low=low, high=high))
table = pd.DataFrame(rows).round(2)
measured = (f"{versions()}, transformer-lens {version('transformer-lens')}, "
            f"{torch.get_num_threads()} threads")
print(measured, table, sep='\n')
file = Path(__file__).parent.parent / 'nbs' / 'bench' / 'transformerlens.csv'
file.write_text(f'# {measured}\n' + table.to_csv(index=False), encoding='utf-8')
