"The embedded language model shows the phenomenon, on questions it was never trained on"
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headpursuit import HeadModel, capture, generate, pocket_path, rank_heads
from headpursuit.capture import HeadStats
from headpursuit.cli import main
from headpursuit.experiments import (
    Answers, before_after, effects, heads_needed, pool_others, run, selections)
from headpursuit.pocket.reading import (
    neutral_text, reading_concepts, reading_corpus, reading_questions, pair_split)


@pytest.fixture(scope='module')
def model(): return HeadModel.from_pretrained(pocket_path())


def test_it_is_an_ordinary_transformers_folder():
    assert sum(p.stat().st_size for p in pocket_path().iterdir()) < 12e6
    lm = AutoModelForCausalLM.from_pretrained(pocket_path())
    tok = AutoTokenizer.from_pretrained(pocket_path())
    text = 'Anna wears red clothes.'
    assert lm.num_parameters() > 1e5
    assert tok.decode(tok(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_few_heads_carry_a_concept(model):
    """At least five concepts, with at most 3 % of heads flipped

    The target falls under 0.3 of base, others stay above 0.85, random heads above 0.9.
    """
    training = reading_questions('train', 60, seed=11)['prompt']
    questions = reading_questions('test', 30, seed=12).to_pandas()
    validation = reading_questions('validation', 30, seed=13).to_pandas()
    stats = capture(model, training, progress=False)
    concepts = reading_concepts(model.tokenizer)
    k = {}
    for c, concept in concepts.items():
        own = validation[validation.concept == c]
        k[c] = heads_needed(model, rank_heads(model, stats, concept), own)
    assert max(k.values()) / len(model.heads) <= .03
    edits = selections(model, stats, concepts, ks=k)
    outcomes = run(model, edits, Answers(questions), progress=False)
    pairs = pool_others(before_after(outcomes, 'correct'))
    base = pairs[pairs.concept == pairs.target].groupby('target').before.mean()
    known = base[base >= .95].index
    assert len(known) >= 5
    table = effects(pairs)
    own = table.concept == table.target
    def at(selection, rows):
        return table[(table.selection == selection) & rows].set_index('target').value
    passed = (at('SOMP', own) < .3) & (at('SOMP', ~own) > .85) & (at('random', own) > .9)
    assert passed[known].sum() >= 5, table.round(2).to_string()


def test_splits_are_disjoint():
    seen = ' '.join(reading_corpus(300, seed=5)['text'])
    for q in reading_questions('test', 20, seed=6):
        name = q['prompt'].split(' has the ')[0].split()[-1]
        assert pair_split(name, q['answer']) == 'test'
        assert f'{name} wears {q["answer"]} ' not in seen


def test_statistics_survive_a_round_trip(model, tmp_path):
    stats = capture(model, neutral_text(20)['text'], samples=True, progress=False)
    stats.save(tmp_path / 's.safetensors')
    again = HeadStats.load(tmp_path / 's.safetensors')
    assert torch.equal(again.samples, stats.samples)
    assert (again.model_id, again.prompt_hash) == (stats.model_id, stats.prompt_hash)


def test_generation_does_not_depend_on_the_batch(model):
    prompts = reading_questions('test', 3, seed=1)['prompt']
    assert generate(model, prompts, batch_size=24) == generate(model, prompts, batch_size=1)


@pytest.mark.slow
def test_demo_command(tmp_path, capsys):
    main(['demo', '--n', '6', '--out', str(tmp_path)])
    assert 'random heads' in capsys.readouterr().out
    assert pd.read_csv(tmp_path / 'effects.csv').target.nunique() == 8
    assert (tmp_path / 'demo.png').stat().st_size > 1000


def test_bad_arguments_end_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['demo', '--k', '0', '--n', '2', '--out', str(tmp_path)])
    assert 'k must be' in capsys.readouterr().err
