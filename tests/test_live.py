"The live explorer: what the engine in the page computes is what PyTorch computes, in a real browser"
import json
import random
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers as tf
from tiny import TEXT, TOK, llama_tokenizer, randomise, text_model
from torch.testing import assert_close

from headpursuit import (Concept, HeadEdit, HeadModel, atlas, builtin_concepts, capture, generate,
                         pocket_path, rank_heads, reading_questions)
from headpursuit.live import live_page, token_counts
from headpursuit.ranking import null_scores

CONCEPTS = ['colours', 'countries', 'months', 'animals', 'professions']
STRANGE = ["It's  ½ a\n\nnaïve 日本 1234 test!!  ", '', ' ', '🙂 x\u00a0y\t\r\n z', "they'll DON'T we've", '<s>Anna</s> is<pad>',
           '</s', 'e\u0301 ﬁ Ⅷ ²', '-->{}[]#@', 'Anna paints every wall red.', 'a' * 50, '\u2028\ufeff.']


@pytest.fixture(scope='module')
def pocket():
    "Model, statistics and prompts of the embedded model, and its live page"
    model = HeadModel.from_pretrained(pocket_path())
    prompts = reading_questions('train', 10)['prompt']
    stats = capture(model, prompts, progress=False)
    concepts = {c: Concept.builtin(c, model.tokenizer) for c in CONCEPTS}
    passages = reading_questions('test', 7)['prompt'][:50]
    page = live_page(model, stats, concepts, prompts=prompts, passages=passages, progress=False)
    return model, stats, prompts, page


def shared_keys():
    "A random Llama with all that the embedded model lacks: shared keys, biases, a tied unembedding, scaled positions"
    torch.manual_seed(0)
    rope = dict(rope_type='linear', factor=2., rope_theta=5e3)
    config = tf.LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=rope)
    model = HeadModel(randomise(tf.AutoModelForCausalLM.from_config(config)).eval(), TOK)
    prompts = [f'The secret number of item {i} is {i * 37 % 1000}.' for i in range(20)]
    stats = capture(model, prompts, progress=False)
    concepts = dict(numbers=Concept('numbers', [[i] for i in range(20, 40)], [], None))
    page = live_page(model, stats, concepts, prompts=prompts, passages=prompts[:5], progress=False)
    return model, stats, prompts, page


def page_of(live, new_page, folder, width=1280, hash='', **options):
    "The live page in a browser, and the list of what goes wrong: errors, messages, requests beyond the file itself"
    file = folder / 'page.html'
    live.save(file)
    page, wrong = new_page(width, **options)
    page.on('request', lambda r: r.url.split('#')[0] in (file.as_uri(), 'data:,') or wrong.append(r.url))
    page.goto(file.as_uri() + hash)
    return page, wrong


@pytest.fixture(scope='module')
def engine(pocket, new_page, tmp_path_factory):
    "The embedded model, in Python and in the browser"
    page, wrong = page_of(pocket[-1], new_page, tmp_path_factory.mktemp('engine'))
    yield *pocket, page
    assert not wrong


@pytest.fixture(scope='module', params=['pocket', 'shared keys'])
def either(request, new_page, tmp_path_factory):
    "The embedded model or another Llama, in Python and in the browser"
    if request.param == 'pocket':
        yield request.getfixturevalue('engine')
        return
    other = shared_keys()
    page, wrong = page_of(other[-1], new_page, tmp_path_factory.mktemp('engine'))
    yield *other, page
    assert not wrong


def edits(model, n, seed=0):
    "Nothing, then random heads with random factors"
    rng = random.Random(seed)
    return [None] + [HeadEdit(heads := rng.sample(model.heads, 3), [rng.choice([-2, -1, 0, .5, 3, 6]) for _ in heads]) for _ in range(n)]


def factors(model, edit):
    alphas = edit.alphas if edit else {}
    return [alphas.get(h, 1.) for h in model.heads]


LOGITS = '''async ([texts, alphas]) => {
  await start();
  return texts.map(text => [...live.model.forward(live.tokenizer.encode(text), live.model.emptyCache(), alphas)]);
}'''
GREEDY = '''async ([texts, alphas, n]) => {
  await start();
  return Promise.all(texts.map(async t => (await write(live.tokenizer.encode(t), alphas, n, () => false)).text));
}'''
SCORES = 'async ids => { await start(); return live.heads.score(ids); }'


def test_logits_are_pytorchs(either):
    model, _, _, live, page = either
    texts = (live.live['passages'] * 10)[:50]
    for edit in edits(model, 3):
        with torch.no_grad(), edit.applied(model) if edit else nullcontext():
            expected = [model.model(**model.encode([t])).logits[0, -1] for t in dict.fromkeys(texts)]
        found = page.evaluate(LOGITS, [list(dict.fromkeys(texts)), factors(model, edit)])
        assert_close(torch.tensor(found), torch.stack(expected), atol=1e-4, rtol=0)


def test_an_edit_moves_the_logits(engine):
    model, _, _, live, page = engine
    text = live.live['passages'][:1]
    plain, edited = (torch.tensor(page.evaluate(LOGITS, [text, factors(model, e)])) for e in edits(model, 1))
    assert (plain - edited).abs().max() > 1e-2


def test_the_cache_changes_nothing(engine):
    _, _, _, live, page = engine
    pieces = '''async text => {
      await start();
      const ids = live.tokenizer.encode(text), cache = live.model.emptyCache();
      let logits;
      for (let i = 0; i < ids.length; i += 7) logits = live.model.forward(ids.slice(i, i + 7), cache);
      return [[...logits], [...live.model.forward(ids, live.model.emptyCache())]];
    }'''
    a, b = page.evaluate(pieces, live.live['passages'][3])
    assert a == pytest.approx(b, abs=1e-5)


def test_greedy_texts_are_the_same(either):
    model, _, _, live, page = either
    texts = live.live['passages']
    for edit in edits(model, 2, seed=1):
        with edit.applied(model) if edit else nullcontext():
            expected = generate(model, texts, max_new_tokens=12)
        assert page.evaluate(GREEDY, [texts, factors(model, edit), 12]) == expected


def test_tokens_are_the_tokenizers(either):
    model, _, prompts, _, page = either
    texts = STRANGE + prompts[:20]
    found = page.evaluate('texts => texts.map(t => live.tokenizer.encode(t))', texts)
    assert found == [model.tokenizer(t).input_ids for t in texts]
    back = page.evaluate('all => all.map(ids => live.tokenizer.decode(ids))', found)
    assert back == [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]


WORDS = [['red', 'blue', 'green'], ['January', 'doctor', 'happy', 'seven'], ['lion', 'Lion', ' tiger ', 'zebra', 'violet'], ['x', 'y', '7'],
         *(builtin_concepts()[c] for c in CONCEPTS)]


@pytest.mark.parametrize('words', WORDS, ids=lambda w: w[0])
def test_own_words_are_ranked_as_in_python(engine, words):
    model, stats, _, _, page = engine
    concept = Concept.from_words('own', words, model.tokenizer)
    found = page.evaluate('words => atomsOf(words, L.names, live.tokenizer)', words)
    assert [[i] for i in found['atoms']] == concept.pieces
    kept = concept.report[concept.report.kept | (concept.report.reason == 'already there')]
    assert [r['word'] for r in found['report'] if r['tokens']] == kept.word.unique().tolist()
    ranking = rank_heads(model, stats, concept, n_atoms=1000)
    assert ranking.rule == 'projection'
    assert page.evaluate(SCORES, found['atoms']) == pytest.approx(ranking.grid().flatten(), abs=1e-4)


def test_dependent_atoms_add_nothing(either):
    model, stats, _, _, page = either
    twice = [30, 31, 32, 30, 31, 33]
    expected = rank_heads(model, stats, Concept('twice', [[i] for i in twice], [], None)).grid().flatten()
    assert page.evaluate(SCORES, twice) == pytest.approx(expected, abs=1e-4)


def test_the_null_is_drawn_as_in_python(engine):
    model, stats, prompts, _, page = engine
    concept = Concept.from_words('own', WORDS[0], model.tokenizer)
    counts = token_counts(model, prompts)
    expected = null_scores(model, stats, concept, counts, n_draws=200)
    sets = page.evaluate('''async ids => {
      await start();
      return [...live.heads.randomSets(ids, 200, generator(0))].map(s => [s, live.heads.score(s)]);
    }''', concept.ids)
    ids, scores = np.array([s for s, _ in sets]), np.array([x for _, x in sets])
    assert not np.isin(ids, concept.ids).any() and all(len(set(s)) == len(concept.ids) for s in ids)
    same = sorted(counts[concept.ids])  # what is drawn is as frequent: compare the sums over all draws
    assert np.sort(counts[ids], 1).mean(0) == pytest.approx(same, rel=.5, abs=5)
    error = np.hypot(scores.std(0), expected.reshape(200, -1).std(0)) / np.sqrt(200)
    assert (np.abs(scores.mean(0) - expected.mean(0).flatten()) < 5 * error + 1e-6).all()


def test_the_pursuit_is_the_atlas(either):
    model, stats, _, _, page = either
    heads = model.heads[::17]
    table = atlas(model, stats, n_atoms=5, heads=heads, progress=False)
    for head in heads:
        path = page.evaluate('async i => { await start(); return live.heads.pursue(i, 5); }', model.heads.index(head))
        rows = table[(table.layer == head.layer) & (table['head'] == head.head)]
        assert [s['candidates'][0]['id'] for s in path] == rows.token_id.tolist()
        assert [s['explained'] for s in path] == pytest.approx(rows.explained.tolist(), abs=1e-4)
