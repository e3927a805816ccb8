"""Head capture beside TransformerLens, on the embedded language model and on SmolLM2.

TransformerLens brings its own versions of torch and torchvision, so it needs its own environment:

    python3 -m venv .venv-tl
    .venv-tl/bin/pip install 'transformer-lens>=4.3' -e .
    .venv-tl/bin/python tools/compare_transformerlens.py

The table goes to nbs/bench/transformerlens.csv, which the benchmark notebook shows. SmolLM2 is
measured if it has been fetched. Both libraries see the same weights and the same batches of random
tokens. What is compared: a plain forward pass of the backbone, `capture` (statistics of every
head), and TransformerLens caching every head's z (`run_with_cache`, which also computes logits),
without and with the same statistics computed from its cache. Times are ratios of pairs that are
run in turn; memory is the peak of what torch has allocated, above where the call began.
"""
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from transformer_lens.model_bridge import TransformerBridge

from headpursuit.capture import HeadStats, capture, stats_of
from headpursuit.dev.bench import paired
from headpursuit.generation import versions
from headpursuit.heads import HeadModel
from headpursuit.presets import pocket_path, small_path

FOLDERS = {'embedded model': pocket_path, 'SmolLM2-135M': small_path}
SIZES = {'embedded model': (64, 64), 'SmolLM2-135M': (4, 64)}  # texts in a batch, tokens in a text


@dataclass
class Comparison:
    "One model in both libraries, and batches of random tokens"
    model: HeadModel
    bridge: TransformerBridge
    batches: list[dict[str, torch.Tensor]]

    @classmethod
    def of(
        cls,
        folder: Path,           # of the model
        size: tuple[int, int],  # texts in a batch, tokens in a text
    ) -> 'Comparison':
        "The model of a folder; TransformerLens gets weights of its own"
        model = HeadModel.from_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            str(folder),
            hf_model=HeadModel.from_pretrained(folder).model,
            tokenizer=model.tokenizer,
            device='cpu',
        )
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(3, model.config.vocab_size, (2, *size), generator=g)
        return cls(model, bridge, [dict(input_ids=batch) for batch in ids])

    @torch.no_grad()
    def forward(self) -> None:
        "A plain forward pass"
        for batch in self.batches: self.model.model.base_model(**batch, use_cache=False)

    def ours(self) -> HeadStats:
        "Statistics of every head by this library"
        return capture(self.model, self.batches, positions='prompt', progress=False)

    def caches(self) -> Iterator[Mapping[str, torch.Tensor]]:
        "What TransformerLens keeps of each batch: every head's z"
        for batch in self.batches:
            yield self.bridge.run_with_cache(
                batch['input_ids'], names_filter=lambda name: name.endswith('attn.hook_z'))[1]

    @torch.no_grad()
    def cached(self) -> None:
        "Every head's z by TransformerLens, and no statistics"
        for _ in self.caches(): pass

    @torch.no_grad()
    def theirs(self) -> HeadStats:
        "The same statistics from what TransformerLens keeps"
        total = 0
        for cache in self.caches():
            layers = [cache[f'blocks.{layer}.attn.hook_z'] for layer in range(self.model.n_layers)]
            z = [layer.reshape(*layer.shape[:2], self.model.n_heads, -1).mean(1)
                 for layer in layers]
            total += stats_of(torch.stack(z, 1), 'prompt')
        return total


def megabytes(
    f: Callable[[], object],  # what is run
) -> int:
    "Peak of torch's memory in a call, above where it began"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen: f()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == '[memory]']
    events.sort(key=lambda e: e.start_ns())
    return round(max(accumulate(e.nbytes() for e in events)) / 1e6)


def compare(
    name: str,  # of the model
) -> list[dict]:  # a row for each way
    "Time and memory of each way on one model"
    c = Comparison.of(FOLDERS[name](), SIZES[name])
    same = torch.allclose(c.ours().mean, c.theirs().mean, atol=1e-4)
    assert same, f'the two do not see the same heads of the {name}'
    ways = {
        'capture': c.ours,
        'TransformerLens, cache only': c.cached,
        'TransformerLens, cache and the same statistics': c.theirs,
    }
    rows = []
    for way, f in ways.items():
        ratio, low, high = (round(x, 2) for x in paired(c.forward, f, pairs=9))
        rows.append(dict(model=name, what=f'{way} / forward pass', ratio=ratio, low=low, high=high,
                         MB=megabytes(f)))
    alone = dict(model=name, what='forward pass', ratio=1, low=1, high=1, MB=megabytes(c.forward))
    return [alone, *rows]


def main() -> None:
    "Measure, print and write the table"
    rows = []
    for name, folder in FOLDERS.items():
        try: folder()
        except ValueError as error:
            print(f'{name} left out: {error}')
            continue
        rows += compare(name)
    table = pd.DataFrame(rows)
    measured = (f"{versions()}, transformer-lens {version('transformer-lens')}, "
                f"{torch.get_num_threads()} threads")
    print(measured, table.to_string(), sep='\n')
    file = Path(__file__).parent.parent / 'nbs' / 'bench' / 'transformerlens.csv'
    file.write_text(f'# {measured}\n' + table.to_csv(index=False), encoding='utf-8')


if __name__ == '__main__':
    main()
