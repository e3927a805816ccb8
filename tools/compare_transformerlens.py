"""Head capture beside TransformerLens, on the embedded language model.

TransformerLens brings its own versions of torch and torchvision, so run this in an environment of its own:

    python3 -m venv .venv-tl && .venv-tl/bin/pip install 'transformer-lens>=4.3' -e . && .venv-tl/bin/python tools/compare_transformerlens.py

The table goes to nbs/bench/transformerlens.csv, which the benchmark notebook shows. Both see the same batches of random tokens. What is compared: a plain forward pass of the backbone, `capture` (statistics of every
head), and TransformerLens caching every head's z (`run_with_cache`, which also computes logits), without and with the same statistics computed from its cache.
"""
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from headpursuit.dev.bench import paired
from headpursuit.capture import capture, stats_of
from headpursuit.generation import versions
from headpursuit.presets import pocket_path
from headpursuit.heads import HeadModel

model = HeadModel.from_pretrained(pocket_path())
bridge = TransformerBridge.boot_transformers(str(pocket_path()), hf_model=HeadModel.from_pretrained(pocket_path()).model, tokenizer=model.tokenizer, device='cpu')
g = torch.Generator().manual_seed(0)
batches = [dict(input_ids=torch.randint(3, model.config.vocab_size, (64, 64), generator=g)) for _ in range(2)]
is_z = lambda name: name.endswith('attn.hook_z')


@torch.no_grad()
def forward():
    for b in batches: model.model.base_model(**b, use_cache=False)


@torch.no_grad()
def lens(statistics: bool = False):
    total = None
    for b in batches:
        _, cache = bridge.run_with_cache(b['input_ids'], names_filter=is_z)
        if statistics:
            z = torch.stack([cache[f'blocks.{l}.attn.hook_z'].reshape(64, 64, model.n_heads, -1).mean(1) for l in range(model.n_layers)], 1)
            s = stats_of(z, 'prompt')
            total = s if total is None else total + s
    return total


ours, theirs = capture(model, batches, positions='prompt', progress=False), lens(statistics=True)
assert torch.allclose(ours.mean, theirs.mean, atol=1e-5), 'the two do not see the same heads'
rows = []
for name, f in {'capture': lambda: capture(model, batches, positions='prompt', progress=False), 'TransformerLens, cache only': lens,
                'TransformerLens, cache and the same statistics': lambda: lens(statistics=True)}.items():
    m, low, high = paired(forward, f, pairs=9)
    rows.append({'what': f'{name} / forward pass', 'ratio': m, 'low': low, 'high': high})
table = pd.DataFrame(rows).round(2)
measured = f"{versions()}, transformer-lens {version('transformer-lens')}, {torch.get_num_threads()} threads"
print(measured, table, sep='\n')
file = Path(__file__).parent.parent / 'nbs' / 'bench' / 'transformerlens.csv'
file.write_text(f"# {measured}\n" + table.to_csv(index=False))
