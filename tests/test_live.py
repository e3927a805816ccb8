"The live explorer: what the engine in the page computes is what PyTorch computes"
import http.server
import random
import re
import threading
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from PIL import Image
from tiny import TEXT, TOK, llama_tokenizer, randomise, text_model
from torch.testing import assert_close

from headpursuit import (Concept, HeadEdit, HeadModel, atlas, builtin_concepts, capture, generate,
                         null_scores, pocket_path, rank_heads)
from headpursuit.live import LiveExplorer, live_page
from headpursuit.pocket.reading import reading_questions
from headpursuit.ranking import token_counts

CONCEPTS = ['colours', 'countries', 'months', 'animals', 'professions']
STRANGE = ["It's  ½ a\n\nnaïve 日本 1234 test!!  ", '', ' ', '🙂 x\u00a0y\t\r\n z', "they'll DON'T",
           '<s>Anna</s> is<pad>', '</s', 'e\u0301 ﬁ Ⅷ ²', '-->{}[]#@', 'Anna is red.', 'a' * 50,
           '\u2028\ufeff.', "we've"]


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
    "A random Llama with what the other lacks: shared keys, biases, tied weights, scaled positions"
    torch.manual_seed(0)
    rope = dict(rope_type='linear', factor=2., rope_theta=5e3)
    config = tf.LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
                            rope_parameters=rope)
    model = HeadModel(randomise(tf.AutoModelForCausalLM.from_config(config)).eval(), TOK)
    prompts = [f'The secret number of item {i} is {i * 37 % 1000}.' for i in range(20)]
    stats = capture(model, prompts, progress=False)
    concepts = dict(numbers=Concept('numbers', [[i] for i in range(20, 40)], [], None))
    page = live_page(model, stats, concepts, prompts=prompts, passages=prompts[:5], progress=False)
    return model, stats, prompts, page


def page_of(live, new_page, folder, width=1280, hash='', **options):
    "The live page in a browser, and what goes wrong: errors, messages, requests"
    file = folder / 'page.html'
    live.save(file)
    page, wrong = new_page(width, **options)
    mine = file.as_uri(), 'data:,'
    page.on('request', lambda r: r.url.split('#')[0] in mine or wrong.append(r.url))
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
    alphas = [-2, -1, 0, .5, 3, 6]
    drawn = [(rng.sample(model.heads, 3), rng.choices(alphas, k=3)) for _ in range(n)]
    return [None, *(HeadEdit(*d) for d in drawn)]


def factors(model, edit):
    alphas = edit.alphas if edit else {}
    return [alphas.get(h, 1.) for h in model.heads]


LOGITS = '''async ([texts, alphas]) => {
  await start();
  return texts.map(text =>
    [...live.model.forward(live.tokenizer.encode(text), live.model.emptyCache(), alphas)]);
}'''
GREEDY = '''async ([texts, alphas, n]) => {
  await start();
  return Promise.all(texts.map(async text =>
    (await write(live.tokenizer.encode(text), alphas, n)).text));
}'''
SCORES = 'async ids => { await start(); return live.heads.score(ids); }'


def test_logits_are_pytorchs(either):
    model, _, _, live, page = either
    texts = live.live['passages']
    for edit in edits(model, 3):
        with torch.no_grad(), edit.applied(model) if edit else nullcontext():
            expected = [model.model(**model.encode([t])).logits[0, -1] for t in texts]
        found = page.evaluate(LOGITS, [texts, factors(model, edit)])
        assert_close(torch.tensor(found), torch.stack(expected), atol=1e-4, rtol=0)


def test_an_edit_moves_the_logits(engine):
    model, _, _, live, page = engine
    text = live.live['passages'][:1]
    plain, edited = (torch.tensor(page.evaluate(LOGITS, [text, factors(model, e)]))
                     for e in edits(model, 1))
    assert (plain - edited).abs().max() > 1e-2


def test_the_cache_changes_nothing(engine):
    _, _, _, live, page = engine
    pieces = '''async text => {
      await start();
      const ids = live.tokenizer.encode(text), cache = live.model.emptyCache();
      let logits;
      for (let i = 0; i < ids.length; i += 7) {
        logits = live.model.forward(ids.slice(i, i + 7), cache);
      }
      return [[...logits], [...live.model.forward(ids, live.model.emptyCache())]];
    }'''
    a, b = page.evaluate(pieces, live.live['passages'][3])
    assert a == pytest.approx(b, abs=1e-5)


def test_greedy_texts_are_the_same(either):
    model, _, _, live, page = either
    texts = live.live['passages']
    for edit in edits(model, 1, seed=1):
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


WORDS = [['red', 'blue', 'green'], ['January', 'doctor', 'happy', 'seven'], ['x', 'y', '7'],
         ['lion', 'Lion', ' tiger ', 'zebra', 'violet'],
         *(builtin_concepts()[c] for c in CONCEPTS)]


@pytest.mark.parametrize('words', WORDS, ids=lambda w: w[0])
def test_own_words_are_ranked_as_in_python(engine, words):
    model, stats, _, _, page = engine
    concept = Concept.from_words('own', words, model.tokenizer)
    found = page.evaluate('words => atomsOf(words, L.names, live.tokenizer)', words)
    assert [[i] for i in found['atoms']] == concept.pieces
    report = concept.report
    kept = report[report.kept | (report.reason == 'already there')]
    assert [r['word'] for r in found['report'] if r['tokens']] == kept.word.unique().tolist()
    ranking = rank_heads(model, stats, concept, n_atoms=1000)
    assert ranking.rule == 'projection'
    expected = ranking.grid().flatten()
    assert page.evaluate(SCORES, found['atoms']) == pytest.approx(expected, abs=1e-4)


def test_dependent_atoms_add_nothing(either):
    model, stats, _, _, page = either
    twice = [30, 31, 32, 30, 31, 33]
    concept = Concept('twice', [[i] for i in twice], [], None)
    expected = rank_heads(model, stats, concept).grid().flatten()
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
    same = sorted(counts[concept.ids])  # what is drawn is about as frequent
    assert np.sort(counts[ids], 1).mean(0) == pytest.approx(same, rel=.5, abs=5)
    error = np.hypot(scores.std(0), expected.reshape(200, -1).std(0)) / np.sqrt(200)
    assert (np.abs(scores.mean(0) - expected.mean(0).flatten()) < 5 * error + 1e-6).all()


def test_the_pursuit_is_the_atlas(either):
    model, stats, _, _, page = either
    heads = model.heads[::17]
    table = atlas(model, stats, n_atoms=5, heads=heads, progress=False)
    for head in heads:
        path = page.evaluate('i => start().then(() => live.heads.pursue(i, 5))',
                             model.heads.index(head))
        rows = table[(table.layer == head.layer) & (table['head'] == head.head)]
        assert [s['candidates'][0]['id'] for s in path] == rows.token_id.tolist()
        assert [s['explained'] for s in path] == pytest.approx(rows.explained.tolist(), abs=1e-4)


# ---- the page

@pytest.fixture
def visit(new_page, tmp_path):
    "Open a live page in a browser; whatever goes wrong on it fails the test"
    seen = []

    def open(live, width=1280, hash='', **options):
        page, wrong = page_of(live, new_page, tmp_path, width, hash, **options)
        seen.append(wrong)
        return page
    yield open
    assert not any(seen)


sizes = pytest.mark.parametrize('width', [1280, 390])


def settled(page, text):
    "Wait until the page shows what it has worked out for a passage"
    page.wait_for_function("""text => live.shown?.key === live.tokenizer.encode(text).join()
        && live.shown.alphas === String(factors())""", arg=text)


def edit_of(page):
    "The edit that the page offers to copy, made by Python"
    return eval(page.locator('#live-code code').inner_text(), dict(HeadEdit=HeadEdit))


@sizes
def test_type_a_passage_and_turn_heads(pocket, visit, width):
    model, stats, _, live = pocket
    text = 'Zoe wears red clothes. Zoe was born in Chad. Zoe has the colour'
    page = visit(live, width)
    page.locator('#run').click()
    page.locator('#passage').fill(text)
    settled(page, text)
    unedited = generate(model, [text], max_new_tokens=12)[0].strip()
    assert page.locator('#before').inner_text() == unedited
    top = rank_heads(model, stats, Concept.builtin('colours', model.tokenizer)).top(1)
    page.locator('#pick-1').click()
    page.locator('#name').fill('2.6')
    page.locator('#name').press('Enter')
    assert page.evaluate('document.activeElement.id') == 'name'
    page.get_by_label(f'Factor of {top[0]}').press('Home')
    page.get_by_label('Factor of L2.H6').press('End')
    settled(page, text)
    assert edit_of(page).alphas == {top[0]: -2, model.check_head('L2.H6'): 6}
    with edit_of(page).applied(model), torch.no_grad():
        expected = generate(model, [text], max_new_tokens=12)[0].strip()
        chances = model.model(**model.encode([text])).logits[0, -1].softmax(-1)
    assert page.locator('#after').inner_text() == expected != unedited
    rows = page.locator('#next tbody tr').all_inner_texts()
    best = model.token_names[chances.argmax()].replace(' ', '·')
    assert any(r.split()[0] == best and r.split()[-1] == f'{chances.max():.2f}' for r in rows)
    page.locator('#name').fill('L9.H1')
    page.get_by_role('button', name='Add').click()
    assert 'layers from 0 to 3' in page.locator('#unknown').inner_text()
    page.get_by_label('Remove L2.H6').click()
    assert list(edit_of(page).alphas) == top


@sizes
def test_own_words_colour_the_map(pocket, visit, width):
    model, stats, _, live = pocket
    page, words = visit(live, width), ['red', 'doctor', 'heliotrope']
    page.locator('#words').fill(', '.join(words))
    page.locator('#own-null table').wait_for()
    ranking = rank_heads(model, stats, Concept.from_words('own', words, model.tokenizer))
    for row in ranking.table[::25].itertuples():
        cell = page.locator(f'[data-head="{row.layer * 32 + row.head}"]')
        assert f'your words {row.score:.2f}' in cell.get_attribute('aria-label')
    first = page.locator('#own-null tbody tr').first.inner_text().split()
    assert first[:2] == [str(ranking.top(1)[0]), f'{ranking.table.score[0]:.2f}']
    assert 'heliotrope (·he' in page.locator('#own-report').inner_text()
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.locator('#words').fill('heliotrope')
    page.wait_for_function('() => D.concepts.length === 5')
    assert page.locator('#concept option:checked').inner_text() == 'colours'
    page.locator('#words').fill(','.join(w for c in CONCEPTS for w in builtin_concepts()[c]))
    page.get_by_text('More than 50 atoms').wait_for()


def test_a_link_shows_the_same_view(pocket, visit):
    _, _, _, live = pocket
    link = ('#model=language&concept=months&head=L1.H4&beside=L3.H2&edit=L2.H6,L0.H1&alpha=2.5,-1'
            '&text=Anna%20is&words=red,%20blue')
    page = visit(live, hash=link)
    settled(page, 'Anna is')
    page.locator('#own-null table').wait_for()
    assert page.locator('#concept option:checked').inner_text() == 'months'
    assert page.locator('#card h2').inner_text() == 'Head L1.H4'
    assert 'L1.H4 beside L3.H2' in page.locator('#card').inner_text()
    assert {str(h): a for h, a in edit_of(page).alphas.items()} == {'L2.H6': 2.5, 'L0.H1': -1}
    page.get_by_label('Factor of L0.H1').press('ArrowRight')
    page.wait_for_function("() => location.hash.includes('alpha=-0.9,2.5')")
    again = visit(live, hash=page.evaluate('location.hash'))
    settled(again, 'Anna is')
    again.locator('#own-null table').wait_for()
    for part in ('#live-code', '#card', '#own-null', '#texts'):
        assert again.locator(part).inner_text() == page.locator(part).inner_text()
    elsewhere = visit(live, hash='#model=other&head=L0.H99&edit=L7.H1,x&alpha=x')
    assert 'made for other' in elsewhere.locator('#about').inner_text()


def test_table_and_picture_are_saved(pocket, visit, tmp_path):
    model, stats, _, live = pocket
    page = visit(live)
    with page.expect_download() as table:
        page.locator('#csv').click()
    table.value.save_as(tmp_path / 'heads.csv')
    saved = pd.read_csv(tmp_path / 'heads.csv')
    expected = rank_heads(model, stats, Concept.builtin('months', model.tokenizer)).grid().flatten()
    assert saved.months.tolist() == pytest.approx(expected, abs=5e-4)
    assert (saved.layer * 32 + saved['head']).tolist() == list(range(128))
    with page.expect_download() as picture:
        page.locator('#picture').click()
    picture.value.save_as(tmp_path / 'map.png')
    colours = Image.open(tmp_path / 'map.png').convert('RGB').getcolors(10**6)
    yellow, white = (253, 231, 37), (255, 255, 255)  # the best head, and the ground
    assert {c for _, c in colours} >= {yellow, white}


def test_two_heads_side_by_side(pocket, visit):
    data, page = pocket[-1].data, visit(pocket[-1])
    page.locator('#pin').click()
    page.locator('[data-head="70"]').click()
    scores = data['concepts'][0]['scores']
    row = page.locator('#comparison tr', has_text='colours').inner_text().split()
    assert row == ['colours', f'{scores[70]:.2f}', f'{max(scores):.2f}']
    page.get_by_role('button', name='Stop comparing').click()
    assert page.locator('#comparison').count() == 0


def test_steps_of_a_pursuit_by_keyboard(pocket, visit):
    model, stats, _, live = pocket
    page = visit(live, hash='#head=L2.H6')
    page.locator('#steps button').click()
    page.locator('#step-slider').press('ArrowRight')
    page.locator('#step-slider').press('ArrowRight')
    rows = atlas(model, stats, n_atoms=3, heads=['L2.H6'], progress=False)
    shown = page.locator('#step').inner_text()
    assert f'Step 3: {1 - rows.explained[1]:.2f} of the variance is left' in shown
    assert rows.token[2].replace(' ', '·') in shown
    assert f'{rows.explained[2]:.2f} is explained' in shown


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@sizes
def test_contrast_and_width(pocket, visit, contrast, scheme, width):
    link = '#edit=L2.H6,L0.H1&beside=L1.H1&words=red,%20heliotrope'
    page = visit(pocket[-1], width, link, color_scheme=scheme)
    settled(page, pocket[-1].live['passages'][0])
    page.locator('#own-null table').wait_for()
    found = contrast(page)
    assert len(found) > 200 and found[0][0] >= 4.5, found[:3]
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_inside_a_notebook(pocket, new_page, tmp_path):
    file = tmp_path / 'notebook.html'
    file.write_text(f'<body>{pocket[-1]._repr_html_()}</body>', encoding='utf-8')
    page, wrong = new_page(1280)
    page.goto(file.as_uri())
    frame = page.frame_locator('iframe')
    frame.locator('#pick-2').click()
    frame.locator('#next tbody tr').first.wait_for()
    assert frame.locator('#live-code code').count() == 1 and not wrong


def test_the_map_works_while_the_weights_come_in(pocket, chromium):
    html = pocket[-1].page.encode()
    go_on = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.end_headers()
            self.wfile.write(html[:len(html) // 2])
            go_on.wait(300)
            self.wfile.write(html[len(html) // 2:])

        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f'http://127.0.0.1:{server.server_port}/', wait_until='commit')
        page.locator('#run').click()
        busy = dict(timeout=120_000)  # as long as a loaded machine may take
        page.wait_for_function("() => document.querySelector('progress')?.value > 0",
                               polling=100, **busy)
        page.locator('[data-head="70"]').click()
        assert page.locator('#card h2').inner_text() == 'Head L2.H6'
        assert page.locator('progress').evaluate('bar => bar.value') < .5
        go_on.set()
        page.locator('#next tbody tr').first.wait_for(**busy)
        context.close()
        server.shutdown()


def test_page_is_small_and_asks_nobody(pocket):
    live = pocket[-1]
    html = LiveExplorer(live.data, live.live, b'').page
    assert len(html.encode()) < 3e6
    assert 'http:' not in html and 'https:' not in html
    asks = r'\bsrc=|@import|url\(|fetch\(|XMLHttpRequest|import\(|innerHTML|\beval\('
    assert not re.search(asks, html)
    assert html.count('Content-Security-Policy') == 1 and "default-src 'none'" in html


def test_strange_tokens_stay_text(visit):
    evil = '</script><img src=x onerror="document.title = 1">'
    model, stats, prompts, _ = shared_keys()
    model._token_names = [evil] * len(TOK)
    concepts = {evil: Concept(evil, [[i] for i in range(20, 40)], [], None)}
    live = live_page(model, stats, concepts, prompts=prompts, passages=[evil], progress=False)
    page = visit(live, 390, '#edit=L0.H1&words=<img>')
    settled(page, evil)
    page.get_by_text('Left out').wait_for()
    assert page.locator('img').count() == 0 and page.title() == 'Head explorer'
    assert evil in page.locator('#next').inner_text()


def test_what_the_engine_cannot_run_is_refused():
    other = HeadModel(text_model('mistral'), TOK)
    prompts = ['Grass is green', 'The sky is blue']
    stats = capture(other, prompts, progress=False)
    with pytest.raises(ValueError, match='this is MistralForCausalLM'):
        live_page(other, stats, prompts=prompts)
    llama = HeadModel(text_model('llama'), llama_tokenizer())
    stats = capture(HeadModel(llama.model, TOK), prompts, progress=False)
    with pytest.raises(ValueError, match='byte-level BPE'):
        live_page(llama, stats, prompts=prompts)
    relu = HeadModel(text_model('llama'), TOK)
    relu.config.hidden_act = 'relu'
    with pytest.raises(ValueError, match='this model has relu'):
        live_page(relu, stats, prompts=prompts)
