"The explorer: what is on its page, how large it gets, and that it works in a real browser"
import json
import re
from functools import partial
from html.parser import HTMLParser

import pytest
import torch
from tiny import TOK
from transformers import AutoModelForCausalLM, LlamaConfig

from headpursuit import Concept, HeadModel, atlas, capture, pocket_path, rank_heads
from headpursuit.explorer import Explorer, explore
from headpursuit.pocket.reading import reading_concepts, reading_questions
from headpursuit.ranking import token_counts

EVIL = '</script><img src=x onerror="document.title = 1">'


def untrained(layers, heads, width):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOK), hidden_size=width, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=heads, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    return HeadModel(AutoModelForCausalLM.from_config(config).eval(), TOK)


def letters(name, ids): return Concept(name, [[i] for i in ids], [], None)


@pytest.fixture(scope='module')
def pocket():
    "Model, statistics and concepts of the embedded model, and its explorer"
    model = HeadModel.from_pretrained(pocket_path())
    prompts = reading_questions('train', 10)['prompt']
    stats = capture(model, prompts, progress=False)
    concepts = reading_concepts(model.tokenizer)
    questions = reading_questions('test', 2).to_pandas()
    held_out = questions.groupby('concept', sort=False)['prompt'].agg(list).to_dict()
    explorer = explore(model, stats, concepts, prompts=prompts, held_out=held_out, k=2,
                       max_new_tokens=4, stop='.', progress=False)
    return model, stats, concepts, explorer


def test_data_are_the_librarys(pocket):
    model, stats, concepts, explorer = pocket
    data = explorer.data
    for c in data['concepts']:
        r = rank_heads(model, stats, concepts[c['name']])
        assert c['scores'] == pytest.approx(r.grid().flatten(), abs=5e-4)
        assert [model.heads[i] for i in c['top']] == r.top(2)
    head = model.heads[37]
    atoms = atlas(model, stats, heads=[head], progress=False).token.tolist()
    assert [data['strings'][i] for i, _ in data['atoms'][37]] == atoms
    for i, near in enumerate(data['near']):
        assert 1 >= near[0][1] >= near[-1][1] and i not in dict(near)
    for rows in data['samples']:
        for prompt, start, digits in rows:
            assert 0 <= start <= len(data['prompts'][prompt]) - len(digits)
    on_page = re.search(r'id="data">(.*?)</script>', explorer.page)[1]
    assert json.loads(json.dumps(data)) == json.loads(on_page)


@pytest.mark.slow
def test_1024_heads_stay_under_3_megabytes(tmp_path):
    model = untrained(32, 32, 64)
    prompts = []
    for i in range(100):
        items = [i * j for j in range(1, 8)]
        told = [f'The secret number of item {n} is {n * 37 % 1000}.' for n in items]
        prompts.append(' '.join(told))
    stats = capture(model, prompts, progress=False)
    names = [f'concept {i}' for i in range(20)]
    concepts = {c: letters(c, range(20 + 16 * i, 36 + 16 * i)) for i, c in enumerate(names)}
    held_out = dict(green=[f'Grass is {i}' for i in range(20)])
    explorer = explore(model, stats, concepts, prompts=prompts, held_out=held_out, k=1,
                       alphas=(-1, 5), max_new_tokens=2, progress=False)
    explorer.save(tmp_path / 'heads.html')
    assert len(explorer.data['samples']) == len(explorer.data['atoms']) == 1024
    for rows in explorer.data['samples']:
        assert [len(digits) for _, _, digits in rows] == [48] * 3
    assert (tmp_path / 'heads.html').stat().st_size < 3e6


def test_page_refers_to_nothing_outside(pocket):
    page = pocket[-1].page
    assert 'http:' not in page and 'https:' not in page
    assert not re.search(r'\bsrc=|@import|url\(|fetch\(|XMLHttpRequest|import\(', page)
    assert re.findall(r'href="(.*?)"', page) == ['data:,']
    assert "default-src 'none'" in page


def evil_explorer():
    model = untrained(2, 4, 32)
    model._token_names = [EVIL] * len(TOK)
    prompts = [f'{EVIL} The secret number of item {i}' for i in range(4)]
    concepts = {EVIL: letters(EVIL, range(20, 30))}
    stats = capture(model, prompts, progress=False)
    return explore(model, stats, concepts, prompts=prompts, held_out={EVIL: [EVIL]},
                   max_new_tokens=2, progress=False)


def test_strange_tokens_stay_text():
    explorer = evil_explorer()
    assert explorer.page.count('</script>') == Explorer({}).page.count('</script>')
    assert '<img' not in explorer.page

    class Frame(HTMLParser):
        found = None
        def handle_starttag(self, tag, attrs): Frame.found = Frame.found or (tag, dict(attrs))
    Frame().feed(explorer._repr_html_())
    assert Frame.found[0] == 'iframe' and Frame.found[1]['srcdoc'] == explorer.page


def test_errors_name_the_mistake(pocket):
    model, stats, concepts, _ = pocket
    other = untrained(2, 4, 32)
    for error, words, call in [
            (TypeError, 'a HeadModel is needed', lambda: explore(model.model, stats)),
            (ValueError, 'needs a tokenizer', lambda: explore(HeadModel(model.model), stats)),
            (ValueError, "no built-in concept 'colors'; there are: colours",
             lambda: explore(model, stats, ['colors'])),
            (TypeError, 'must be a list of names', lambda: explore(model, stats, 'colours')),
            (ValueError, 'no prompts', lambda: explore(model, stats, concepts, prompts=[])),
            (ValueError, 'no concepts', lambda: explore(model, stats, {})),
            (ValueError, 'alphas is empty',
             lambda: explore(model, stats, concepts, held_out=dict(a=['b']), alphas=[])),
            (ValueError, 'belong to another model', lambda: explore(other, stats, concepts))]:
        with pytest.raises(error, match=words):
            call()


def test_the_whole_unembedding_is_made_once_for_all_words(pocket, monkeypatch):
    "Once for the atlas and once for the words of the concepts, however many these are"
    model, stats, concepts, _ = pocket
    whole = HeadModel.dictionary
    calls = []
    monkeypatch.setattr(HeadModel, 'dictionary', lambda *a, **k: calls.append(1) or whole(*a, **k))
    for c in concepts.values():
        rank_heads(model, stats, c)
    for_ranking = len(calls)
    calls.clear()
    explore(model, stats, concepts, progress=False)
    assert len(calls) - for_ranking == 2


@pytest.fixture
def visit(new_page, tmp_path):
    "Open HTML in a fresh page; any error, message or request beyond the file itself fails the test"
    seen = []

    def open(html, width, **options):
        (tmp_path / 'page.html').write_text(html, encoding='utf-8')
        page, wrong = new_page(width, **options)
        seen.append(wrong)
        page.goto((tmp_path / 'page.html').as_uri())
        return page
    yield open
    assert not any(seen)


sizes = pytest.mark.parametrize('width', [1280, 390])


def cell(page, i): return page.locator(f'[data-head="{i}"]')


def written(data, i): return ', '.join(data['strings'][s].strip() for s, _ in data['atoms'][i])


@sizes
def test_hover_shows_atoms_and_click_opens_the_card(pocket, visit, width):
    model, _, _, explorer = pocket
    page = visit(explorer.page, width)
    cell(page, 70).hover()
    score = explorer.data['concepts'][0]['scores'][70]
    expected = f'L2.H6 colours {score:.2f}\n{written(explorer.data, 70)}'
    assert page.locator('#tip').inner_text() == expected
    cell(page, 70).tap() if width < 500 else cell(page, 70).click()
    card = page.locator('#card')
    assert card.locator('h2').inner_text() == 'Head L2.H6'
    rows = card.locator('table').first.locator('tbody tr')
    assert rows.count() == len(explorer.data['atoms'][70])
    assert card.locator('.sample').count() == 3 and card.locator('.sample .peak').count() == 3
    card.get_by_role('button', name='months').click()
    assert page.locator('#concept option:checked').inner_text() == 'months'
    score = explorer.data['concepts'][2]['scores'][70]
    assert f'months {score:.2f}' in cell(page, 70).get_attribute('aria-label')


def test_scores_over_chance_are_named_and_drawn(pocket, visit):
    model, stats, concepts, _ = pocket
    counts = token_counts(model, reading_questions('train', 10)['prompt'])
    find = partial(rank_heads, score='ratio', counts=counts, n_draws=5)
    explorer = explore(model, stats, {'months': concepts['months']}, find=find, progress=False)
    months, = explorer.data['concepts']
    ratios = find(model, stats, concepts['months']).grid().flatten()
    assert months['scores'] == pytest.approx(ratios, abs=5e-4) and max(ratios) > 1.5
    page = visit(explorer.page, 1280)
    named = 'times the explained variance of random words'
    assert page.locator('#measure').inner_text() == named
    second = ratios.argsort()[-2]
    cell(page, second).click()
    bar = page.locator('#card tr.now .meter i').evaluate('e => parseFloat(e.style.width)')
    assert bar == pytest.approx(100 * ratios[second] / max(ratios), abs=.1)


@sizes
def test_keyboard_alone(pocket, visit, width):
    page = visit(pocket[-1].page, width)

    def press(*keys) -> str:
        "What has the focus after some keys"
        for key in keys:
            page.keyboard.press(key)
        return page.evaluate('document.activeElement.dataset.head || document.activeElement.id')

    assert page.locator('#grid [tabindex="0"]').count() == 1  # one tab stop for the whole map
    assert press('Tab') == 'concept'
    assert press('Tab', 'PageDown', 'Home') == '0'
    for key, head in [('ArrowRight', '1'), ('ArrowUp', '33'), ('ArrowUp', '65'),
                      ('ArrowLeft', '64'), ('ArrowLeft', '64'), ('ArrowDown', '32'),
                      ('End', '63')]:
        assert press(key) == head
    assert page.locator('#tip strong').inner_text() == 'L1.H31'
    assert press('Enter') == 'card'
    assert page.locator('#card h2').inner_text() == 'Head L1.H31'
    assert press('Escape') == '63'
    for chosen in ('true', 'false'):
        press('Space')
        assert cell(page, 63).get_attribute('aria-selected') == chosen


@sizes
def test_before_and_after(pocket, visit, width):
    data = pocket[-1].data
    edits = data['edits']
    page = visit(pocket[-1].page, width)
    assert 'No head is selected' in page.locator('#edit').inner_text()
    top = data['concepts'][2]['top']
    page.select_option('#concept', '2')
    for i in top:
        page.get_by_role('button', name=re.compile(f'^L{i // 32}.H{i % 32} ')).first.click()
        page.locator('#choose').click()
    mine = [j for j, (g, *_) in enumerate(edits['prompts']) if edits['groups'][g] == 'months']
    for a, alpha in enumerate(edits['alphas']):
        page.locator('#edit label', has_text=re.compile(f'^{alpha}$'.replace('-', '−'))).click()
        after = edits['after'][edits['sets'].index(sorted(top))][a]
        texts = [data['strings'][t].strip() for j in mine for t in (edits['before'][j], after[j])]
        shown = page.locator('.pair dd').all_inner_texts()
        shown = [shown[i - 1] if s == 'unchanged' else s for i, s in enumerate(shown)]
        assert len(shown) == 4 and shown == texts
    assert page.locator('#top-2').get_attribute('aria-pressed') == 'true'
    never = next(i for i in range(128) if i not in sum(edits['sets'], []))
    cell(page, never).click(modifiers=['Shift'])  # nothing was computed for this set
    assert page.locator('.pair').count() == 0
    assert 'were not computed' in page.locator('#outcome').inner_text()
    page.locator('#nearest').click()
    assert page.locator('.pair').count() == 2


def test_no_sideways_scroll_on_a_phone(pocket, visit):
    page = visit(pocket[-1].page, 390)
    page.locator('#top-2').click()
    for c in range(len(pocket[-1].data['concepts'])):
        page.select_option('#concept', str(c))
        page.locator('#strongest button').nth(3).click()
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
    cell(page, 31).hover()
    box = page.locator('#tip').bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= 390


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast_is_aa(pocket, visit, contrast, scheme):
    page = visit(pocket[-1].page, 1280, color_scheme=scheme)
    page.locator('#top-1').click()
    cell(page, 40).hover()
    found = contrast(page)
    assert len(found) > 100 and found[0][0] >= 4.5, found[:3]
    background = page.evaluate('getComputedStyle(document.body).backgroundColor')
    brightness = sum(map(int, re.findall(r'\d+', background)))
    assert (brightness < 384) == (scheme == 'dark')


def test_a_link_leads_to_the_view(pocket, visit):
    page = visit(pocket[-1].page, 1280)
    page.select_option('#concept', '2')
    cell(page, 70).click()
    page.wait_for_function("() => document.getElementById('link').href.includes('head=L2.H6')")
    with page.expect_popup() as opened: page.locator('#link').click()
    assert opened.value.locator('#card h2').inner_text() == 'Head L2.H6'
    assert opened.value.locator('#concept option:checked').inner_text() == 'months'


def test_inside_a_notebook(pocket, visit):
    html = f'<body style="background: #111">{pocket[-1]._repr_html_()}</body>'
    page = visit(html, 1280, color_scheme='light')
    frame = page.frame_locator('iframe')
    frame.locator('[data-head="70"]').click()
    assert frame.locator('#card h2').inner_text() == 'Head L2.H6'
    page.wait_for_function('f => f.offsetHeight === f.contentDocument.documentElement.scrollHeight',
                           arg=page.query_selector('iframe'))
    assert frame.locator('html').evaluate('e => e.style.colorScheme') == 'dark'


def test_strange_tokens_in_the_browser(visit):
    page = visit(evil_explorer().page, 390)
    page.locator('#top-1').click()
    cell(page, 3).hover()
    cell(page, 3).click()
    assert page.locator('img').count() == 0 and page.title() == 'Head explorer'
    assert EVIL in page.locator('#card').inner_text() and EVIL in page.locator('.pair').inner_text()
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
