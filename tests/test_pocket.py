"The embedded language model shows the phenomenon, on questions it was never trained on"
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headpursuit import HeadModel, capture, effects, flip_heads, generate, heads_needed, pocket_path, rank_heads
from headpursuit.capture import HeadStats
from headpursuit.cli import main
from headpursuit.pocket.reading import neutral_text, reading_concepts, reading_corpus, reading_questions, split_of


@pytest.fixture(scope='module')
def model(): return HeadModel.from_pretrained(pocket_path())


def test_it_is_an_ordinary_transformers_folder():
    assert sum(p.stat().st_size for p in pocket_path().iterdir()) < 12e6
    lm, tok = AutoModelForCausalLM.from_pretrained(pocket_path()), AutoTokenizer.from_pretrained(pocket_path())
    assert lm.num_parameters() > 1e5 and tok.decode(tok('Anna wears red clothes.').input_ids, skip_special_tokens=True) == 'Anna wears red clothes.'


@pytest.mark.slow
def test_few_heads_carry_a_concept(model):
    "At least five concepts: at most 3 % of heads flipped, target under 0.3 of base, others above 0.85, random heads above 0.9"
    training = reading_questions('train', 60, seed=11)['prompt']
    questions = reading_questions('test', 30, seed=12).to_pandas()
    validation = reading_questions('validation', 30, seed=13).to_pandas()
    stats, concepts = capture(model, training, progress=False), reading_concepts(model.tokenizer)
    k = {c: heads_needed(model, rank_heads(model, stats, x), validation[validation.concept == c]) for c, x in concepts.items()}
    assert max(k.values()) / len(model.heads) <= .03
    table = effects(flip_heads(model, stats, concepts, questions, k=k, progress=False))
    assert (table.base >= .95).sum() >= 5
    passed = table[(table.base >= .95) & (table.edited < .3) & (table.others > .85) & (table.random > .9)]
    assert len(passed) >= 5, table.round(2).to_string()


def test_splits_are_disjoint():
    seen = ' '.join(reading_corpus(300, seed=5)['text'])
    for q in reading_questions('test', 20, seed=6):
        name = q['prompt'].split(' has the ')[0].split()[-1]
        assert split_of(name, q['answer']) == 'test' and f'{name} wears {q["answer"]} ' not in seen


def test_statistics_survive_a_round_trip(model, tmp_path):
    stats = capture(model, neutral_text(20)['text'], samples=True, progress=False)
    stats.save(tmp_path / 's.safetensors')
    again = HeadStats.load(tmp_path / 's.safetensors')
    assert torch.equal(again.samples, stats.samples) and again.model_id == stats.model_id and again.prompt_hash == stats.prompt_hash


def test_generation_does_not_depend_on_the_batch(model):
    prompts = reading_questions('test', 3, seed=1)['prompt']
    assert generate(model, prompts, batch_size=24) == generate(model, prompts, batch_size=1)


@pytest.mark.slow
def test_demo_command(tmp_path, capsys):
    main(['demo', '--n', '6', '--out', str(tmp_path)])
    assert 'random heads' in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / 'effects.csv')) == 8 and (tmp_path / 'demo.png').stat().st_size > 1000


def test_bad_arguments_end_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit): main(['demo', '--k', '0', '--n', '2', '--out', str(tmp_path)])
    assert 'k must be between 1 and' in capsys.readouterr().err
