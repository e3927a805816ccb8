"""What an object accepts, it can vouch for: every public door refuses bad input in words.

Two tables. `KINDS` says, for parameters of one name, which values are bad and which words the error
must have; every public function with such a parameter is called with each of them, all else being
good (`GOOD`). `ROWS` and `TYPED` are cases by hand: a call or a command, its error, its words."""
import inspect
import math
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from datasets import Dataset
from papermill.parameterize import parameterize_path
from safetensors.torch import save_file
from tiny import CORPUS, TOK, image, llama_tokenizer, text_model, vision_model

from headpursuit import (
    Concept, Dictionary, Head, HeadEdit, HeadModel, HeadRanking, HeadStats, capture, generate,
    null_scores, off_target, rank_heads,
)
from headpursuit.capture import check_batch, position_mask
from headpursuit.cli import main
from headpursuit.distributed import capture_shards
from headpursuit.explorer import Explorer
from headpursuit.ranking import token_counts
from headpursuit.store import cached_table, read_tensors, split_of

MODULES = ('store', 'pursuit', 'dictionary', 'metrics', 'heads', 'capture', 'distributed',
           'ranking', 'editing', 'generation', 'cause', 'experiments', 'fit', 'pocket.reading',
           'pocket.seeing', 'facts', 'eyes', 'fetch', 'easy_vqa', 'presets', 'material', 'explorer',
           'live', 'cli')
PROMPTS = CORPUS[:6]
WRONG = (ValueError, TypeError, IndexError)


@cache
def w():
    "Good things of every kind, of tiny models"
    w = SimpleNamespace()
    w.model = HeadModel(text_model('llama'), TOK)
    w.twin = HeadModel(text_model('qwen2'), TOK)  # other weights in the same shape
    model, _, processor = vision_model('llava')
    w.seeing = HeadModel(model, processor)
    w.stats = capture(w.model, PROMPTS, samples=True, progress=False)
    w.concept = Concept.from_words('colours', ['green', 'blue', 'red'], TOK)
    w.ranking = rank_heads(w.model, w.stats, w.concept)
    w.counts = token_counts(w.model, CORPUS)
    w.null = null_scores(w.model, w.stats, w.concept, w.counts, n_draws=3)
    w.questions = pd.DataFrame(dict(prompt=PROMPTS, answer=' green', concept='colours'))
    w.edit = HeadEdit('L0.H1', -1)
    w.D = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    w.H = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    w.words = Dictionary(w.D, list('abcdefghi'))
    w.Z = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(2)).double()
    w.W = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3)).double()
    w.dataset = Dataset.from_dict(dict(text=PROMPTS))
    return w


@cache
def stats_of_another(kind):
    "Statistics of a model of the same shape, of another shape, or of the model before an edit"
    if kind == 'twin': return capture(w().twin, PROMPTS, progress=False)
    if kind == 'edited':
        with w().edit.applied(w().model): return capture(w().model, PROMPTS, progress=False)
    return capture(HeadModel(text_model('gemma2'), TOK), PROMPTS, progress=False)


# ---------------------------------------------------------------- generated from parameters

NAN, INF = math.nan, math.inf
COUNTS = ('n', 'k', 'n_atoms', 'n_draws', 'nearest', 'batch_size', 'max_new_tokens', 'n_samples',
          'n_near', 'rank', 'window', 'steps', 'most', 'n_shards', 'n_resamples', 'n_train',
          'n_test')
TEXTS = [('one text', 'list of'), ([None], 'None'), (['a', NAN], 'nan'), ([' '], 'empty'),
         ([], 'no (prompts|texts)')]
KINDS = {  # parameter: bad values, each alone or with words; the name is in the words by default
    **dict.fromkeys(COUNTS, [0, -1, 1.5, 'many']),
    'seed': [-1, 1.5, 'now'],
    'alpha': [NAN, INF, -INF, 'strong'],
    'alphas': [([NAN], 'finite'), ([1, INF], 'finite')],
    'rule': ['l1', 2],
    'positions': [0, 'middle', 3.5],
    'stats': [(lambda: stats_of_another('twin'), 'other weights'),
              (lambda: stats_of_another('edited'), 'other weights'),
              (lambda: one_sample(), 'at least 2')],
    'concept': [('colours', 'a Concept is needed'), (None, 'a Concept is needed')],
    'subspace': [('colours', 'a Concept is needed')],
    'words': [('red', 'list of words'), (['red', None], 'None'), (['red', NAN], 'nan')],
    'prompts': TEXTS, 'texts': TEXTS, 'inputs': TEXTS,
    'questions': [([dict(prompt='a')], 'table'), (pd.DataFrame(dict(prompt=['a'])), "'answer'"),
                  (pd.DataFrame(dict(answer=['a'])), "'prompt'"),
                  (pd.DataFrame(dict(prompt=['a'], answer=[None])), 'question 0 has no answer')],
    'heads': [(['L9.H9'], 'L9.H9 does not exist'), (['first'], 'is not a head'),
              ([(0.5, 1)], 'is not a head'), ([(-1, 0)], 'does not exist')],
    'null': [(np.full((3, 2, 4), NAN), 'NaN'), (np.ones((3, 4, 2)), 'shape'),
             (np.ones(3), 'shape')],
    'counts': [(np.ones(3), 'counts of 3 tokens')],
    'preset': [('huge', 'huge')],
    'split': [('dev', 'dev')],
    'part': [('dev', 'dev')],
    'multi': [('join', 'multi')],
}
KINDS |= dict(chosen=KINDS['heads'], background=KINDS['stats'])


def one_sample():
    "Statistics of a single sample"
    return capture(w().model, PROMPTS[:1], progress=False)


def asked(**options):
    "The arguments of a function that asks a model questions"
    return dict(model=w().model, questions=w().questions, **options)


def ranked(**options):
    "The arguments of a function that ranks heads"
    return dict(model=w().model, stats=w().stats, **options)


GOOD = {  # function: good arguments, as a function so that nothing is made before it is needed
    'pursuit.matching_pursuit': lambda: dict(h=w().H[0], D=w().D, n_atoms=2),
    'pursuit.somp_literal': lambda: dict(H=w().H, D=w().D, n_atoms=2),
    'pursuit.somp': lambda: dict(H=w().H, D=w().D, n_atoms=2),
    'pursuit.omp': lambda: dict(h=w().H[0], D=w().D, n_atoms=2),
    'pursuit.somp_moments': lambda: dict(C=w().Z.mT @ w().Z, W=w().W, D=w().D.double(), n_atoms=2),
    'pursuit.somp_samples': lambda: dict(Z=w().Z, W=w().W, D=w().D.double(), n_atoms=2),
    'store.check_seed': lambda: dict(seed=0),
    'dictionary.word_list': lambda: dict(words=['red']),
    'dictionary.check_concept': lambda: dict(concept=w().concept),
    'metrics.bootstrap_interval': lambda: dict(values=[1., 0, 1]),
    'metrics.concept_counts': lambda: dict(texts=['red'], words=['red']),
    'metrics.without_words': lambda: dict(texts=['red'], words=['red']),
    'metrics.fate': lambda: dict(predictions=['red'], answers=['red'], words=['red']),
    'heads.check_prompts': lambda: dict(prompts=PROMPTS),
    'capture.check_rule': lambda: dict(positions='last'),
    'capture.rule_name': lambda: dict(positions='last'),
    'capture.position_mask': lambda: dict(
        model=w().model, batch=w().model.encode(PROMPTS), positions='last'),
    'capture.head_samples': lambda: dict(
        model=w().model, batch=w().model.encode(PROMPTS), positions='last'),
    'capture.text_batches': lambda: dict(
        model=w().model, prompts=PROMPTS, batch_size=2, padding_side='left'),
    'capture.capture': lambda: dict(model=w().model, inputs=PROMPTS, progress=False),
    'distributed.capture_shards': lambda: dict(
        model=w().model, dataset=w().dataset, folder='never made', progress=False),
    'ranking.check_fit': lambda: ranked(),
    'ranking.rank_heads': lambda: ranked(concept=w().concept, score='ratio', counts=w().counts),
    'ranking.rank_by_logit_lens': lambda: ranked(concept=w().concept),
    'ranking.random_heads': lambda: dict(model=w().model, chosen=['L0.H1']),
    'ranking.redraw_heads': lambda: dict(model=w().model, heads=['L0.H1']),
    'ranking.overlap_test': lambda: dict(model=w().model, a=['L0.H1'], b=['L0.H2']),
    'ranking.random_concepts': lambda: dict(concept=w().concept, counts=w().counts),
    'ranking.null_scores': lambda: ranked(concept=w().concept, counts=w().counts),
    'ranking.stand_out': lambda: dict(ranking=w().ranking, null=w().null),
    'ranking.over_null': lambda: dict(ranking=w().ranking, null=w().null),
    'ranking.token_counts': lambda: dict(model=w().model, texts=PROMPTS),
    'ranking.atlas': lambda: ranked(progress=False),
    'ranking.lens_tokens': lambda: ranked(),
    'generation.check_questions': lambda: dict(questions=w().questions),
    'generation.question_samples': lambda: dict(questions=w().questions),
    'generation.generate': lambda: dict(model=w().model, prompts=PROMPTS),
    'generation.answer': asked,
    'generation.off_target': lambda: dict(model=w().model, texts=PROMPTS, edit=w().edit),
    'generation.unedited': lambda: dict(model=w().model, texts=PROMPTS),
    'generation.side_effects': lambda: dict(
        model=w().model, texts=PROMPTS, edits=dict(one=w().edit)),
    'cause.answer_log_prob': asked,
    'cause.likelihood': asked,
    'cause.attribution': lambda: asked(subspace=w().concept),
    'cause.flip_each': lambda: asked(heads=['L0.H1']),
    'cause.verify': lambda: asked(ranking=w().ranking, k=2),
    'fit.contrast': lambda: dict(
        a=np.ones((1, 2, 4)), about=['colours'], concept=w().concept),
    'fit.matched_filter': lambda: dict(
        a=np.ones((2, 2, 4)), about=['colours', 'other'], n_tokens=[1, 1], concept=w().concept),
    'fit.proposals': lambda: asked(concept=w().concept),
    'fit.fit_edit': lambda: dict(
        model=w().model, concept=w().concept, validation=w().questions, neutral=PROMPTS,
        proposed=[], progress=False),
    'experiments.selections': lambda: ranked(concepts=dict(colours=w().concept)),
    'experiments.heads_needed': lambda: asked(
        ranking=w().ranking, score=lambda said, true: 1., max_new_tokens=1),
    'explorer.departures': lambda: ranked(prompts=PROMPTS),
    'explorer.strongest_samples': lambda: dict(seen=[(['a'], torch.ones(1, 8))]),
    'explorer.head_similarity': lambda: ranked(),
    'explorer.completions': lambda: dict(
        model=w().model, rankings=dict(colours=w().ranking), held_out=dict(more=PROMPTS),
        strings=defaultdict(int), progress=False),
    'explorer.explore': lambda: ranked(
        concepts=dict(colours=w().concept), held_out=dict(more=PROMPTS), progress=False),
    'live.live_page': lambda: ranked(prompts=PROMPTS, concepts=dict(colours=w().concept)),
    'facts.recall_questions': lambda: dict(split='test'),
    'facts.copy_questions': lambda: dict(split='test'),
    'easy_vqa.easy_vqa': lambda: dict(split='test', wheel='nowhere'),
    'presets.check_preset': lambda: dict(preset='pocket'),
    'presets.load_model': lambda: dict(preset='pocket'),
    'presets.settings': lambda: dict(experiment='atlas', preset='pocket'),
    'material.load_source': lambda: dict(name='mnist', folder='nowhere'),
    'material.question_answering': lambda: dict(preset='pocket'),
    'material.toxicity': lambda: dict(preset='pocket'),
    'material.image_classification': lambda: dict(preset='pocket'),
    'material.captioning': lambda: dict(preset='pocket'),
    'material.visual_questions': lambda: dict(name='easy-VQA shape', split='test'),
    'material.in_words': lambda: dict(name='colours', split='test', n=1),
    'pocket.reading.reading_corpus': lambda: dict(n=1),
    'pocket.reading.reading_questions': lambda: dict(split='test', n=1),
    'pocket.reading.reading_stories': lambda: dict(split='test', n=1),
    'pocket.reading.neutral_text': lambda: dict(n=1),
    'pocket.seeing.caption_scenes': lambda: dict(split='test', n=1),
    'pocket.seeing.classification_set': lambda: dict(name='digits', split='test', n=1),
    'cli.demo': dict,
    'cli.bench': dict,
    'cli.bench_heads': dict,
    'material.keywords': lambda: dict(texts=['red']),
    'cli.reproduce_models': lambda: dict(name='atlas', models='all'),
    'cli.reproduce': lambda: dict(name='atlas'),
}
PAPER = 'the data of the paper have to be there: tests/test_paper_path.py'
LETTERS = 'a seed of letters: any value makes one'
NOT = {  # (function, parameter): why none of the bad values is given to it
    **{(f'pocket.{f}', 'seed'): LETTERS for f in (
        'reading.reading_corpus', 'reading.reading_questions', 'reading.reading_stories',
        'reading.neutral_text', 'reading.insult_classifier', 'seeing.caption_scenes',
        'seeing.classification_set')},
    **{(f'{f}', 'seed'): LETTERS for f in (
        'facts.recall_questions', 'facts.copy_questions', 'material.question_answering',
        'material.toxicity', 'material.image_classification', 'material.captioning')},
    **{(f'material.{f}', p): PAPER for p in ('part', 'n', 'seed') for f in (
        'triviaqa_questions', 'toxicity_prompts', 'labelled_pictures', 'flickr_captions')},
    ('material.toxicity', 'words'): PAPER,
    **{(f'{f}', 'texts'): 'what a model wrote, which may be nothing' for f in (
        'metrics.concept_counts', 'metrics.without_words', 'experiments.count_words',
        'experiments.score_captions', 'pocket.seeing.judge_captions')},
    **{(f'experiments.{f}', 'words'): 'words by concept; concept_counts looks at them' for f in (
        'count_words', 'score_captions')},
    ('material.with_names', 'prompts'): 'made by labelled_pictures',
    ('material.keyword_prompts', 'prompts'): 'made by labelled_pictures',
    ('material.keyword_prompts', 'preset'): 'looked at by labelled_pictures before',
    ('material.keywords', 'texts'): 'what a model wrote, which may be nothing',
    ('store.at_least_one', 'counts'): 'numbers by name',
    ('heads.check_prompts', 'prompts'): 'only whether they are a list',
    ('capture.stats_of', 'positions'): 'a name for what was looked at before',
    ('distributed.all_reduce', 'stats'): 'of any model: compared with those of other workers',
    ('live.live_weights', 'stats'): 'part of live_page, which looked at them',
    ('live.tokenizer_tables', 'n'): 'rows of an unembedding',
    ('dictionary.token_strings', 'n'): 'rows of an unembedding',
}


def name_of(value):
    "A short name for a value"
    text = value.__name__ if callable(value) else repr(value)
    return re.sub(r'\s+', ' ', text)[:30]


def public():
    "Name and function of everything public that is called"
    for module in MODULES:
        m = import_module(f'headpursuit.{module}')
        for name in m.__all__:
            f = getattr(m, name)
            if inspect.isfunction(f) and f.__module__ == m.__name__: yield f'{module}.{name}', f


def takes():
    "Function and parameter, for every parameter that `KINDS` knows"
    for name, f in public():
        for parameter in inspect.signature(f).parameters:
            if parameter in KINDS and (name, parameter) not in NOT: yield name, parameter


def generated():
    "One row for each function, parameter and bad value; selections can do without draws"
    for name, parameter in takes():
        if name not in GOOD: continue  # and the test below says so
        for case in KINDS[parameter]:
            if (name, parameter, case) == ('experiments.selections', 'n_draws', 0): continue
            bad, words = case if isinstance(case, tuple) else (case, rf'\b{parameter}')
            yield pytest.param(name, parameter, bad, words, id=f'{name}-{parameter}-{name_of(bad)}')


def test_every_public_function_with_such_a_parameter_is_tried():
    assert not {name for name, _ in takes()} - GOOD.keys()
    names = dict(public())
    assert not {name for name, _ in NOT} - names.keys() and not GOOD.keys() - names.keys()


@pytest.mark.parametrize('name, parameter, bad, words', list(generated()))
def test_a_bad_value_is_refused_in_words(name, parameter, bad, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    f = dict(public())[name]
    given = GOOD[name]() | {parameter: bad() if callable(bad) else bad}
    with pytest.raises(WRONG, match=words):
        found = f(**given)
        if inspect.isgenerator(found): list(found)
    assert not [*tmp_path.rglob('*.part')]


# ---------------------------------------------------------------- by hand

def other_tokenizer():
    "The concept of `w`, made with a tokenizer in which these ids are other tokens"
    return Concept.from_words('colours', ['green', 'is', 'red'], llama_tokenizer(), multi='pieces')


def picture(text='a picture of'):
    return [dict(text=text, image=image())]


def with_weight(value):
    "The model of `w` with one weight changed"
    model = HeadModel(text_model('llama'), TOK)
    model.projections[0].weight.data[0, 0] = value
    return model


def applied(edit, model):
    with edit.applied(model): pass


def hand(kind, words, call, id=None):
    "A row of `ROWS`"
    return pytest.param(call, kind, words, id=id or words)


ROWS = [
    # numbers that are none
    hand(ValueError, 'alpha must be finite', lambda t: HeadEdit('L0.H1', NAN)),
    hand(ValueError, 'alpha must be finite', lambda t: HeadEdit(['L0.H1'], [INF]), id='a list'),
    hand(TypeError, 'alpha must be a number', lambda t: HeadEdit('L0.H1', 'strong')),
    hand(ValueError, '2 factors for 1 heads', lambda t: HeadEdit('L0.H1', [1, 2])),
    hand(ValueError, 'too large for weights in torch.float16', lambda t: applied(
        HeadEdit('L0.H1', 1e6), HeadModel(text_model('llama').half()))),
    hand(ValueError, 'too large for weights in torch.float16', lambda t: HeadEdit(
        'L0.H1', 6e4).merge(HeadModel(text_model('llama').half().apply(grow))), id='merged'),
    hand(ValueError, 'the score of L0.H1 is NaN', lambda t: HeadRanking.from_scores(
        [[0, NAN]], concept=w().concept, rule='mine')),
    hand(ValueError, 'scores must be a matrix', lambda t: HeadRanking.from_scores(
        [0, 1], concept=w().concept, rule='mine')),
    hand(ValueError, 'the outputs of L0.H0 are NaN', lambda t: HeadStats(
        3, w().stats.mean * NAN, w().stats.scatter, 'prompt')),
    hand(ValueError, 'output weights of layer 0 have NaN', lambda t: rank_heads(
        with_weight(NAN), unknown(w().stats), w().concept)),
    hand(ValueError, 'infinite', lambda t: rank_heads(
        with_weight(INF), unknown(w().stats), w().concept)),
    hand(ValueError, 'NaN or infinite', lambda t: capture(with_weight(NAN), PROMPTS,
                                                          progress=False)),
    hand(ValueError, 'the score of L0.H0 is NaN', lambda t: rank_heads(
        w().model, changed(NAN), w().concept), id='statistics changed in place'),
    hand(ValueError, 'NaN or infinite values among the examples', lambda t: call(
        'metrics.bootstrap_interval', values=[1., NAN])),
    # what does not belong together
    hand(ValueError, 'made with another tokenizer', lambda t: rank_heads(
        w().model, w().stats, other_tokenizer())),
    hand(ValueError, 'made with another tokenizer', lambda t: other_tokenizer().atoms(
        w().model.dictionary()), id='in a dictionary'),
    hand(ValueError, 'another tokenizer', lambda t: rank_heads(
        w().model, w().stats, Concept('far', [[10**6]], [], None)), id='an id too large'),
    hand(ValueError, 'another tokenizer', lambda t: rank_heads(
        w().model, w().stats, Concept('below', [[-1]], [], None)), id='an id below zero'),
    hand(ValueError, 'belong to another model', lambda t: rank_heads(
        w().model, stats_of_another('vision'), w().concept)),
    hand(ValueError, 'other weights', lambda t: rank_heads(
        merged(), w().stats, w().concept), id='before a merge'),
    hand(ValueError, 'other weights', lambda t: rank_heads(
        HeadModel(merged().model.bfloat16()), w().stats, w().concept),
        id='before a merge, in another precision'),
    hand(ValueError, 'do not belong together', lambda t: w().stats + stats_of_another('twin')),
    hand(ValueError, 'positions', lambda t: w().stats + capture(
        w().model, PROMPTS, positions='last', samples=True, progress=False)),
    hand(ValueError, 'samples', lambda t: w().stats + capture(
        w().model, PROMPTS, progress=False)),
    hand(ValueError, 'magnitude rule needs the samples', lambda t: rank_heads(
        w().model, capture(w().model, PROMPTS, progress=False), w().concept,
        n_atoms=1, rule='magnitude')),
    hand(ValueError, 'made for', lambda t: HeadEdit.load(saved_edit(t), w().twin)),
    hand(IndexError, 'L7.H0 does not exist', lambda t: applied(HeadEdit('L7.H0', 2), w().model)),
    # what a model does at the moment
    hand(ValueError, 'training mode', lambda t: generate(training(), PROMPTS)),
    hand(ValueError, 'training mode', lambda t: capture(training(), PROMPTS), id='capture'),
    hand(ValueError, 'meta device', lambda t: HeadModel(text_model('llama').to('meta'))),
    hand(ValueError, 'encoder-decoder', lambda t: HeadModel(encoder_decoder())),
    hand(ValueError, 'not a transformers language model', lambda t: capture('gpt2', PROMPTS)),
    hand(ValueError, 'quantised', lambda t: HeadModel(quantised())),
    hand(ValueError, 'prompt tuning', lambda t: HeadModel(prompt_tuned())),
    hand(ValueError, 'wrapped by an adapter', lambda t: HeadModel(lora('o_proj'))),
    hand(ValueError, 'unembedding is wrapped', lambda t: HeadModel(lora('lm_head'))),
    hand(ValueError, 'inside an adapter', lambda t: w().edit.save(t / 'edit', lora('q_proj'))),
    hand(TypeError, 'a HeadModel is needed', lambda t: generate(w().model.model, PROMPTS)),
    hand(ValueError, 'needs a tokenizer', lambda t: generate(
        HeadModel(text_model('llama')), PROMPTS)),
    hand(TypeError, 'a HeadModel already', lambda t: HeadModel(w().model)),
    # inputs that mean something else
    hand(TypeError, 'boolean tensor', lambda t: capture(
        w().model, PROMPTS, positions=lambda b: b['input_ids'][:, -1], progress=False)),
    hand(TypeError, 'boolean tensor', lambda t: capture(
        w().model, PROMPTS, positions=lambda b: b['attention_mask'], progress=False),
        id='a rule that returns weights'),
    hand(ValueError, 'no image token', lambda t: capture(
        w().model, PROMPTS, positions='image', progress=False)),
    hand(ValueError, 'reads no pictures', lambda t: capture(w().model, picture())),
    hand(ValueError, 'reads no pictures', lambda t: generate(w().model, picture()), id='generate'),
    hand(ValueError, 'mark of a picture', lambda t: capture(
        w().seeing, ['<image> a picture'], progress=False)),
    hand(ValueError, 'mark of a picture', lambda t: generate(
        w().seeing, ['<image> a picture']), id='written'),
    hand(ValueError, 'number of images', lambda t: capture(
        w().seeing, picture('<image>') + picture('no mark'), progress=False)),
    hand(ValueError, 'number of images', lambda t: capture(
        w().seeing, [dict(text='<image>')] + picture('<image>'), progress=False),
        id='one picture for two'),
    hand(ValueError, 'prompt 0 of a batch has an image but no mark', lambda t: capture(
        w().seeing, picture('no mark') + picture('<image> <image>'), progress=False)),
    hand(TypeError, 'prompt 0 is None', lambda t: call(
        'generation.off_target', texts=[dict(text=None, answer='red')])),
    hand(TypeError, 'prompt 0 is None', lambda t: call('cause.attribution', questions=nobody()),
         id='attribution'),
    hand(TypeError, 'prompt 0 is None', lambda t: call('generation.answer', questions=nobody()),
         id='answer'),
    hand(ValueError, 'is too long', lambda t: capture(w().model, [' '.join(CORPUS[:60])])),
    hand(ValueError, 'and 900 to write', lambda t: generate(
        w().model, PROMPTS, max_new_tokens=900)),
    hand(ValueError, 'model and tokenizer belong together', lambda t: check_batch(
        w().model, dict(input_ids=torch.tensor([[10**6]])))),
    hand(ValueError, 'token ids from -1', lambda t: check_batch(
        w().model, dict(input_ids=torch.tensor([[-1]])))),
    hand(TypeError, 'shape', lambda t: capture(w().model, [dict(input_ids=torch.arange(3))])),
    hand(ValueError, 'prompt 641 is empty', lambda t: capture(
        w().model, ['In May'] * 641 + ['\n'])),
    hand(ValueError, 'prompt 641 is empty', lambda t: capture_shards(
        w().model, Dataset.from_dict(dict(text=['In May'] * 641 + ['\n'])), t / 'shards'),
        id='in shards'),
    hand(TypeError, 'a Dataset is needed', lambda t: capture_shards(
        w().model, PROMPTS, t / 'shards')),
    hand(ValueError, r"lacks the columns \['text'\]", lambda t: capture_shards(
        w().model, w().dataset.rename_column('text', 'prompt'), t / 'shards')),
    hand(TypeError, 'a list of prompts', lambda t: capture(w().model, w().questions)),
    hand(TypeError, 'list of words', lambda t: Concept.from_words('colours', 'red', TOK)),
    hand(TypeError, 'got None', lambda t: Concept.from_words('colours', ['red', None], TOK)),
    hand(TypeError, 'got nan', lambda t: Concept.from_pieces('colours', ['red', NAN], TOK)),
    hand(ValueError, 'has no tokens', lambda t: Concept.from_words('none', [], TOK)),
    hand(ValueError, 'no built-in concept', lambda t: Concept.builtin('smells', TOK)),
    hand(ValueError, 'multi must be', lambda t: Concept.from_words('a', ['b'], TOK, multi='all')),
    hand(ValueError, 'has no atoms', lambda t: Concept('nothing', [], [], None)),
    hand(ValueError, 'has no atoms', lambda t: Concept('nothing', [[1], []], [], None), id='[[]]'),
    hand(ValueError, '9 atoms but 1 names', lambda t: Dictionary(w().D, ['a'])),
    hand(ValueError, 'n must be a whole number', lambda t: w().words.logit_lens(w().D[0], 0)),
    hand(ValueError, 'is not a head', lambda t: Head.parse(24.2)),
    hand(ValueError, 'is not a head', lambda t: Head.parse((0.5, 1)), id='half a layer'),
    hand(ValueError, 'names a head twice', lambda t: HeadEdit(['L0.H1', '0.1'], 2)),
    hand(ValueError, 'at least one head', lambda t: HeadEdit([], 2)),
    hand(ValueError, "unknown positions 'first'", lambda t: HeadEdit(
        'L0.H1', 2, positions='first')),
    hand(ValueError, 'no change of weights', lambda t: HeadEdit(
        'L0.H1', 2, positions='last').merge(w().model)),
    hand(ValueError, 'needs generate', lambda t: off_target(
        w().model, ['The sky'], HeadEdit('L0.H1', 2, positions='last'))),
    hand(ValueError, 'two empty sets', lambda t: call('ranking.overlap', a=[], b=[])),
    hand(ValueError, 'k must be between 1 and 8', lambda t: w().ranking.top(9)),
    hand(ValueError, 'k must be a whole number', lambda t: w().ranking.top(1.5)),
    hand(ValueError, 'k must be a whole number', lambda t: HeadEdit.from_ranking(
        w().ranking, 0, -1), id='an edit of no heads'),
    hand(ValueError, 'token id 1000000', lambda t: w().model.rows([10**6])),
    hand(ValueError, 'token id -1', lambda t: w().model.rows([-1])),
    hand(ValueError, 'no token', lambda t: position_mask(
        w().model, w().model.encode(PROMPTS), lambda b: torch.zeros_like(b['input_ids']).bool())),
    hand(ValueError, 'no questions about', lambda t: nothing_asked()),
    hand(TypeError, "finder 'mine' returned a list", lambda t: call(
        'experiments.selections', finders=dict(mine=lambda *args: []))),
    hand(TypeError, 'a Concept is needed', lambda t: call(
        'experiments.selections', concepts=dict(colours='colours')), id='selections of a name'),
    hand(ValueError, "cannot be called 'random'", lambda t: call(
        'experiments.selections', finders=dict(random=rank_heads))),
    hand(ValueError, 'k must be', lambda t: call('experiments.selections', ks=[0])),
    hand(ValueError, 'unknown kind of model', lambda t: call('presets.load_model', kind='sound')),
    hand(ValueError, 'unknown experiment', lambda t: call('presets.settings', experiment='poem')),
    hand(ValueError, 'n_train must be', lambda t: call('presets.settings', n_train=-5)),
    hand(ValueError, 'unknown data set', lambda t: call('material.load_source', name='poems')),
    hand(ValueError, 'cannot be loaded', lambda t: call('material.load_source')),
    hand(TypeError, 'an answer must be a text', lambda t: call(
        'metrics.exact_match', prediction=None, answers=['red'])),
    hand(ValueError, '1 predictions but 2 answers', lambda t: call(
        'metrics.fate', answers=['red', 'blue'])),
    hand(ValueError, 'at least 2 images', lambda t: call(
        'metrics.cider', captions=['a'], references=[['a']])),
    hand(ValueError, 'the same examples', lambda t: call(
        'metrics.bootstrap_interval', base=[1.])),
    hand(ValueError, 'same space', lambda t: call('pursuit.somp', D=w().D[:, :3])),
    hand(ValueError, 'NaN', lambda t: call('pursuit.somp', H=w().H * NAN)),
    hand(ValueError, 'D .the dictionary. has NaN', lambda t: call('pursuit.omp', D=w().D * INF)),
    hand(ValueError, 'must be a matrix', lambda t: call('pursuit.somp', H=w().H[0])),
    hand(ValueError, 'C .* has NaN|signals. has NaN', lambda t: call(
        'pursuit.somp_moments', C=NAN * w().Z.mT @ w().Z)),
    hand(ValueError, 'D .the atoms. is empty', lambda t: call(
        'pursuit.orthonormal_basis', D=w().D[:0])),
    hand(ValueError, 'alphas is empty', lambda t: call('explorer.explore', alphas=[])),
    hand(ValueError, 'shares 1 prompts', lambda t: call(
        'explorer.explore', prompts=PROMPTS, held_out=dict(more=PROMPTS[:1]))),
    hand(TypeError, 'list of names', lambda t: call('explorer.explore', concepts='colours')),
    hand(TypeError, 'a Concept is needed', lambda t: call(
        'explorer.explore', concepts=dict(colours='colours'))),
    hand(ValueError, 'no built-in concept', lambda t: call(
        'explorer.explore', concepts=['smells']), id='explore smells'),
    # files
    hand(FileNotFoundError, 'there is no folder', lambda t: w().stats.save(t / 'no' / 'stats')),
    hand(IsADirectoryError, 'is a folder', lambda t: w().stats.save(t)),
    hand(OSError, 'stats', lambda t: HeadStats.load(t / 'stats')),
    hand(OSError, 'irectory|device', lambda t: HeadStats.load(t), id='a folder for statistics'),
    hand(ValueError, 'truncated or damaged', lambda t: HeadStats.load(half_a_file(t))),
    hand(ValueError, 'truncated or damaged', lambda t: HeadStats.load(
        written(t / 'stats', 'words')), id='no safetensors'),
    hand(ValueError, 'does not hold head statistics', lambda t: HeadStats.load(
        tensors(t, 'something'))),
    hand(ValueError, 'update headpursuit', lambda t: HeadStats.load(
        tensors(t, 'headpursuit.HeadStats/99'))),
    hand(ValueError, 'damaged', lambda t: HeadStats.load(tensors(t, 'headpursuit.HeadStats/3')),
         id='tensors that lack'),
    hand(FileNotFoundError, 'no head_edit.json', lambda t: HeadEdit.load(t)),
    hand(FileNotFoundError, 'no head_edit.json', lambda t: HeadEdit.load(t / 'no'), id='no edit'),
    hand(ValueError, 'head_edit.json is not a file in JSON', lambda t: HeadEdit.load(
        damaged_edit(t, '{"format":'))),
    hand(ValueError, 'head_edit.json holds a list', lambda t: HeadEdit.load(damaged_edit(t, '[]'))),
    hand(ValueError, "does not say 'alpha'", lambda t: HeadEdit.load(
        damaged_edit(t, '{"format": "headpursuit.HeadEdit/2", "heads": []}'))),
    hand(ValueError, 'update headpursuit', lambda t: HeadEdit.load(
        damaged_edit(t, '{"format": "headpursuit.HeadEdit/9"}')), id='a later edit'),
    hand(ValueError, 'disagree', lambda t: HeadEdit.load(other_adapter(t), w().model)),
    hand(FileExistsError, 'another adapter', lambda t: w().edit.save(
        written(t / 'adapter_config.json', '{}').parent, w().model)),
    hand(OSError, 'file', lambda t: w().edit.save(written(t / 'file', ''), w().model),
         id='a file for a folder'),
    hand(ValueError, 'settings.json is not a file in JSON', lambda t: capture_shards(
        w().model, w().dataset, written(t / 'settings.json', '{').parent)),
    hand(ValueError, 'settings.json holds a list', lambda t: capture_shards(
        w().model, w().dataset, written(t / 'settings.json', '[1]').parent)),
    hand(ValueError, 'other settings', lambda t: capture_shards(
        w().model, w().dataset, written(t / 'settings.json', '{}').parent)),
    hand(OSError, 'file', lambda t: capture_shards(
        w().model, w().dataset, written(t / 'file', '')), id='a file for shards'),
    hand(ValueError, 'damaged', lambda t: cached_twice(t)),
    hand(OSError, 'file', lambda t: cached_table(
        written(t / 'file', ''), 'base', lambda: pd.DataFrame(dict(a=[1]))),
        id='a file for tables'),
    hand(FileNotFoundError, 'there is no folder', lambda t: Explorer({}).save(t / 'no' / 'page'),
         id='explorer'),
    hand(ValueError, 'add up to 256', lambda t: split_of('a', dict(train=1))),
    hand(ValueError, 'there is no file', lambda t: HeadModel.from_pretrained(t / 'model.gguf')),
    hand(ValueError, 'is not a GGUF file', lambda t: HeadModel.from_pretrained(
        written(t / 'model.gguf', 'words'))),
]


def call(function, /, **given):
    "A function with good arguments, but for those given"
    module, _, f = function.rpartition('.')
    good = GOOD.get(function, dict)
    return getattr(import_module(f'headpursuit.{module}'), f)(**good() | given)


def grow(module):
    "Weights near the end of float16"
    if isinstance(module, torch.nn.Linear): module.weight.data.fill_(3.)


def unknown(stats):
    "The same statistics, of a model that nobody knows"
    return HeadStats(stats.count, stats.mean, stats.scatter, stats.positions)


def changed(value):
    "Statistics into which somebody wrote"
    stats = capture(w().model, PROMPTS, progress=False)
    stats.scatter[0, 0] = value
    return stats


def merged():
    model = HeadModel(text_model('llama'), TOK)
    w().edit.merge(model)
    return model


def training():
    return HeadModel(text_model('llama').train(), TOK)


def encoder_decoder():
    import transformers as tf
    return tf.T5ForConditionalGeneration(tf.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def quantised():
    "A model whose projections multiply with codes"
    model = text_model('llama')
    for layer in model.model.layers:
        p = layer.self_attn.o_proj
        p.weight = torch.nn.Parameter(p.weight.data.to(torch.int8), requires_grad=False)
    return model


def lora(*targets):
    peft = pytest.importorskip('peft')
    return peft.get_peft_model(text_model('llama'), peft.LoraConfig(
        r=2, target_modules=list(targets), init_lora_weights=False)).eval()


def prompt_tuned():
    peft = pytest.importorskip('peft')
    return peft.get_peft_model(text_model('llama'), peft.PromptTuningConfig(
        task_type='CAUSAL_LM', num_virtual_tokens=2))


def nobody():
    "A question without a prompt"
    return pd.DataFrame(dict(prompt=[None], answer=['red'], concept='colours'))


def nothing_asked():
    from headpursuit.experiments import Answers, Condition
    return Answers(w().questions)(w().model, Condition(target='months', heads='L0.H1'))


def written(file, text):
    file.write_text(text)
    return file


def half_a_file(folder):
    w().stats.save(folder / 'stats')
    whole = (folder / 'stats').read_bytes()
    (folder / 'stats').write_bytes(whole[:-9])
    return folder / 'stats'


def tensors(folder, form):
    save_file(dict(mean=torch.zeros(1, 1, 1)), folder / 'stats', dict(format=form))
    return folder / 'stats'


def saved_edit(folder):
    w().edit.save(folder / 'edit', w().model)
    return folder / 'edit'


def damaged_edit(folder, text):
    return written(saved_edit(folder) / 'head_edit.json', text).parent


def other_adapter(folder):
    "An edit whose adapter was trained further"
    file = saved_edit(folder) / 'adapter_model.safetensors'
    meta, parts = read_tensors(file)
    save_file({name: 3 * x for name, x in parts.items()}, file, meta)
    return file.parent


def cached_twice(folder):
    "A table that was damaged in between"
    def table(): return cached_table(folder, 'base', lambda: pd.DataFrame(dict(a=[1])))
    table()
    file, = folder.glob('base*.parquet')
    file.write_bytes(file.read_bytes()[:-9])
    return table()


@pytest.mark.parametrize('call, error, words', ROWS)
def test_a_bad_call_is_refused_in_words(call, error, words, tmp_path):
    with pytest.raises(error, match=words): call(tmp_path)
    assert not [*tmp_path.rglob('*.part')]


# ---------------------------------------------------------------- and what is good is not refused

def test_the_same_model_in_another_precision_is_the_same():
    for dtype in (torch.bfloat16, torch.float16):
        half = HeadModel(text_model('llama').to(dtype), TOK)
        assert len(rank_heads(half, w().stats, w().concept)) == 8
        there = capture(half, PROMPTS, progress=False)
        assert len(rank_heads(w().model, there, w().concept)) == 8


def test_an_adapter_that_is_switched_off_is_no_part_of_the_model():
    model = lora('q_proj')
    adapted = HeadModel(model, TOK)
    with model.disable_adapter():
        off = adapted.weights_hash()
        assert len(rank_heads(adapted, w().stats, w().concept)) == 8
    assert off == w().model.weights_hash() != adapted.weights_hash()
    with pytest.raises(ValueError, match='other weights'):
        rank_heads(adapted, w().stats, w().concept)
    once = adapted.weights_hash()
    for layer in model.modules():
        if hasattr(layer, 'scale_layer'): layer.scale_layer(2.)
    assert adapted.weights_hash() != once


def test_statistics_changed_on_disk_are_those_that_were_saved(tmp_path):
    w().stats.save(tmp_path / 'stats')
    again = HeadStats.load(tmp_path / 'stats')
    assert again.weights == w().stats.weights
    assert len(rank_heads(w().model, again, w().concept)) == 8


# ---------------------------------------------------------------- the command line

TYPED = [  # what is typed, FILE and FOLDER being there; words that must occur
    ('', 'required'), ('sing', 'invalid choice'),
    ('demo --k 0', 'k must be'), ('demo --k -1', 'k must be'), ('demo --k many', 'invalid int'),
    ('demo --n 0', 'n must be'), ('demo --n -5', 'n must be'), ('demo --n 1.5', 'invalid int'),
    ('demo --alpha nan', 'finite'), ('demo --alpha inf', 'finite'),
    ('demo --alpha strong', 'invalid float'), ('demo --seed -1', 'seed must be'),
    ('demo --seed now', 'invalid int'), ('demo --model huge', 'invalid choice'),
    ('demo --out FILE', 'FILE'), ('demo --out FILE/here', 'FILE'),
    ('bench --scale 0', 'scale must be'), ('bench --scale -1', 'scale must be'),
    ('bench --scale 7', 'scale must be'), ('bench --scale nan', 'scale must be'),
    ('bench --scale large', 'invalid float'), ('bench --seed -1', 'seed must be'),
    ('bench --device tpu', 'invalid choice'), ('bench --out FILE', 'FILE'),
    ('fetch', 'required'), ('fetch gpt5', 'invalid choice'),
    ('fetch smollm2 --folder FILE', 'holds something else'),
    ('fetch smollm2 --folder FOLDER', 'holds something else'),
    ('site quickly', 'unrecognized'),
    ('reproduce', 'required'), ('reproduce poetry', 'invalid choice'),
    ('reproduce atlas --preset huge', 'unknown preset'),
    ('reproduce strength --preset small', 'no preset'),
    ('reproduce atlas --out FILE', 'FILE'), ('reproduce atlas --out FILE/here', 'FILE'),
    ('reproduce atlas -p colour red', "no parameter 'colour'"),
    ('reproduce atlas -p out there', "no parameter 'out'"),
    ('reproduce atlas -p n_train', 'expected 2 arguments'),
    ('reproduce atlas -p n_train -5', 'n_train must be'),
    ('reproduce atlas -p n_train 0', 'n_train must be'),
    ('reproduce atlas -p n_train many', 'n_train must be'),
    ('reproduce atlas -p n_train 1.5', 'n_train must be'),
    ('reproduce atlas -p n_train NaN', 'n_train must be'),
    ('reproduce atlas -p n_train [5]', 'n_train must be'),
    ('reproduce atlas -p n_atoms null', 'n_atoms must be'),
    ('reproduce atlas -p batch_size 0', 'batch_size must be'),
    ('reproduce atlas -p seed -1', 'seed must be'), ('reproduce atlas -p seed now', 'seed must be'),
    ('reproduce atlas -p seed null', 'seed must be'),
    ('reproduce atlas -p folder 7', 'folder must be a text'),
    ('reproduce atlas -p model_id ["a"]', 'model_id must be a text'),
    ('reproduce question_answering -p ks 3', 'ks must be a list'),
    ('reproduce question_answering -p ks []', 'ks needs'),
    ('reproduce question_answering -p ks [0]', 'ks must be'),
    ('reproduce question_answering -p ks [1.5]', 'ks must be a list'),
    ('reproduce question_answering -p ks ["a"]', 'ks must be a list'),
    ('reproduce question_answering -p n_null -1', 'n_null must be'),
    ('reproduce strength -p alphas 5', 'alphas must be a list'),
    ('reproduce strength -p alphas [NaN]', 'finite'),
    ('reproduce strength -p alphas [1,Infinity]', 'finite'),
    ('reproduce strength -p k 0', 'k must be'),
    ('reproduce toxicity -p toxic_words rude', 'toxic_words must be a list'),
    ('reproduce toxicity -p toxic_words [1]', 'toxic_words must be a list'),
    ('reproduce atlas --out SETTINGS_DAMAGED', 'settings.json is not a file in JSON'),
    ('reproduce atlas --out SETTINGS_LIST', 'settings.json holds a list'),
    ('reproduce atlas --out SETTINGS_OTHER', 'other settings'),
]


def places(folder):
    "Files and folders that commands are pointed at"
    (folder / 'FOLDER').mkdir()
    written(folder / 'FILE', '')
    written(folder / 'FOLDER' / 'something', '')
    for name, text in dict(DAMAGED='{"preset"', LIST='[1]', OTHER='{"preset": "large"}').items():
        (folder / f'SETTINGS_{name}').mkdir()
        written(folder / f'SETTINGS_{name}' / 'settings.json', text)


@pytest.mark.parametrize('typed, words', TYPED, ids=[t or 'nothing' for t, _ in TYPED])
def test_a_bad_command_ends_in_one_line_and_status_2(typed, words, tmp_path, monkeypatch, capsys):
    places(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end: main(typed.split())
    said = capsys.readouterr().err
    *usage, last = said.strip().split('\n')
    assert end.value.code == 2 and words in last and 'Traceback' not in said
    assert last.startswith('headpursuit') and (not usage or usage[0].startswith('usage'))


def test_a_bad_command_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, '-c', 'from headpursuit.cli import main; main()']
    done = subprocess.run([*command, 'demo', '--seed', '-1', '--out', str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('headpursuit: seed must be')


def stand_in(monkeypatch, run):
    "Replace papermill's execution of a notebook"
    monkeypatch.setattr(papermill, 'execute_notebook', run)


def test_braces_in_a_folder_are_braces(tmp_path, monkeypatch):
    def run(source, target, parameters, **options):
        assert Path(parameterize_path(source, parameters)).is_file()
        Path(parameterize_path(target, parameters)).write_text('{}')
    stand_in(monkeypatch, run)
    main(['reproduce', 'atlas', '--out', str(tmp_path / '{preset} {x}')])
    assert (tmp_path / '{preset} {x}' / 'atlas.ipynb').read_text() == '{}'


def test_an_experiment_that_stops_says_why_in_one_line(tmp_path, monkeypatch, capsys):
    def run(*args, **options):
        raise papermill.PapermillExecutionError(3, 3, 'x', 'ValueError', 'no such data', ['...'])
    stand_in(monkeypatch, run)
    with pytest.raises(SystemExit) as end: main(['reproduce', 'atlas', '--out', str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count('\n') == 1
    assert 'atlas stopped with ValueError: no such data' in said


def test_there_are_at_least_150_cases():
    assert len(list(generated())) + len(ROWS) + len(TYPED) >= 150
