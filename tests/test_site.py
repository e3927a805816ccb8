"The built site in a browser: pages, links, search, both themes, a laptop's width and a phone's"
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SOUND = '''() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const images = [...document.images];
  const address = image => image.src.slice(0, 80);
  const isFlat = m => m.getClientRects().length && !m.getBoundingClientRect().width;
  const named = e => e.innerText || e.ariaLabel || e.title || e.labels?.length;
  return {
    title: document.querySelector('h1')?.innerText,
    broken: images.filter(i => !i.complete || !i.naturalWidth).map(address),
    silent: images.filter(i => !i.alt.trim()).map(address),
    flat: all('math').filter(isFlat).length,
    pictures: images.length,
    formulas: all('math').length,
    nameless: all('button, input, select, iframe').filter(e => !named(e)).length,
    wide: document.documentElement.scrollWidth - screen.width,
    ids: all('[id]').map(e => e.id),
    links: [...document.links].map(a => a.getAttribute('href')),
  };
}'''
# What is wider or higher than its place, and how a reader would know: by the shade of styles.css
# at the edge, which two of its background's layers paint, or by a bar to scroll with.
CUT_OFF = '''() => {
  const inside = [...document.querySelectorAll('main *')];
  const shows = e => {
    const style = getComputedStyle(e), size = e.getBoundingClientRect();
    const shade = style.backgroundImage.split('gradient(').length > 4
      && style.backgroundAttachment.includes('local');
    return {wide: shade || e.offsetHeight - e.clientHeight > 5,
            high: shade || e.offsetWidth - e.clientWidth > 5};
  };
  return inside.filter(e => {
    if (!e.clientWidth || e.closest('math, iframe, svg')) return false;  // inline, or moved whole
    const style = getComputedStyle(e);
    const wide = e.scrollWidth > e.clientWidth + 1, high = e.scrollHeight > e.clientHeight + 1;
    const moves = side => ['auto', 'scroll'].includes(style['overflow' + side]);
    const shut = side => ['hidden', 'clip'].includes(style['overflow' + side]);
    return wide && (shut('X') || moves('X') && !shows(e).wide)
      || high && (shut('Y') && !moves('X') || moves('Y') && !shows(e).high);
  }).map(e => [e.tagName, e.className, e.innerText.slice(0, 60)]);
}'''
BLOB = 'https://github.com/headpursuit/headpursuit/blob/main/'
sizes = pytest.mark.parametrize('width', [1280, 390])


@pytest.fixture(scope='module')
def site(chromium, tmp_path_factory):
    "Folder of the pages, as Pandoc renders them"
    pytest.importorskip('pypandoc', reason='the preview needs pypandoc_binary')
    folder = tmp_path_factory.mktemp('site') / 'pages'
    command = [sys.executable, 'tools/preview.py', '--out', str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site):
    "All pages but those of the explorers, which a page of the site frames"
    return [file for file in sorted(site.rglob('*.html')) if not file.stem.startswith('explorer_')]


@pytest.fixture(scope='module')
def visit(new_page):
    "Open a file at a width, in one tab for each: the page, and what went wrong on this visit"
    tabs = {}

    def open(file, width, theme='light'):
        if (width, theme) not in tabs: tabs[width, theme] = new_page(width, color_scheme=theme)
        page, wrong = tabs[width, theme]
        wrong.clear()
        page.goto(file.as_uri())
        return page, wrong
    return open


def listed(items):
    "Pages of the sidebar"
    for item in items:
        if isinstance(item, str): yield item
        else: yield from listed(item['contents'])


def test_the_sidebar_lists_every_page(site, visit):
    config = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))
    wanted = list(listed(config['website']['sidebar']['contents']))
    assert len(pages(site)) == len(wanted)
    page, _ = visit(site / 'index.html', 1280)
    assert page.locator('#sidebar a').count() == len(wanted)


NOTEBOOKS = [p for p in (ROOT / 'nbs').rglob('*.ipynb')
             if not any(part[0] in '._' for part in p.relative_to(ROOT).parts)]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_no_markup_of_quarto_is_read_in_jupyter(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    prose = re.sub(r'```.*?```|`[^`]*`', '', text, flags=re.S)
    assert not re.findall(r'^:::.*|\[@.*?\]|\)\{[#.]?[\w-]+.*?\}|@(?:fig|tbl)-[\w-]*', prose, re.M)


@sizes
def test_every_page_renders(site, visit, width):
    pictures = formulas = 0
    for file in pages(site):
        page, wrong = visit(file, width)
        found = page.evaluate(SOUND)
        name = file.relative_to(site)
        assert found['title'] and not wrong, (name, wrong)
        for fault in ('broken', 'silent', 'flat', 'nameless'):
            assert not found[fault], (name, fault, found[fault])
        assert found['wide'] <= 0, f'{name} is {found["wide"]} pixels wider than the screen'
        assert file.stat().st_size < 5e6
        pictures += found['pictures']
        formulas += found['formulas']
    assert pictures > 50 and formulas > 50


@sizes
@pytest.mark.parametrize('room', ['learn', 'experiments', 'howto', '.', 'bench', 'pocket', 'dev'])
def test_no_block_is_cut_off(site, visit, room, width):
    for file in pages(site):
        if file.parent != site / room: continue
        cut = visit(file, width)[0].evaluate(CUT_OFF)
        assert not cut, (file.relative_to(site), cut)


@pytest.mark.parametrize('style, seen', [
    ('', 0),
    ('width: 50px; overflow: hidden', 1),
    ('width: 50px; overflow-x: auto; scrollbar-width: none', 1),
    ('width: 50px; overflow-x: auto; background: '
     + ', '.join(['linear-gradient(red, blue) local'] * 4), 0),
])
def test_what_is_cut_off_is_found(new_page, style, seen):
    page, _ = new_page(390)
    page.set_content(f'<main><div style="{style}"><p style="width: 200px">text</p></div></main>')
    assert len(page.evaluate(CUT_OFF)) == seen


def test_code_has_900_pixels(site, visit):
    for name in ('learn/reading_one_head.html', 'experiments/captioning.html', 'pursuit.html'):
        page, _ = visit(site / name, 1280)
        blocks = page.locator('div.sourceCode:visible')
        widths = blocks.evaluate_all('e => e.map(x => x.offsetWidth)')
        assert widths and min(widths) >= 900, (name, widths)


def test_figures_stand_on_a_card_in_the_dark(site, visit):
    page, _ = visit(site / 'learn' / 'reading_one_head.html', 1280, 'dark')
    cards = page.locator('figure :has(> img)').evaluate_all(
        'e => e.map(x => getComputedStyle(x).backgroundColor)')
    assert cards and all(min(map(int, re.findall(r'\d+', card)[:3])) > 180 for card in cards), cards


def test_figures_are_large_enough_on_a_phone(site, visit):
    page, _ = visit(site / 'experiments' / 'captioning.html', 390)
    sizes = page.locator('figure img').evaluate_all('e => e.map(x => [x.width, x.naturalWidth])')
    assert sizes and all(shown >= min(own, 550) for shown, own in sizes), sizes


def test_types_are_whole_on_a_phone(site, visit):
    page, _ = visit(site / 'heads.html', 390)
    heights = page.locator('.parameters td:nth-child(2) > code').evaluate_all(
        'e => e.map(x => [x.innerText, x.getClientRects().length])')
    broken = [text for text, lines in heights if lines > 1 and len(text) < 30]
    assert len(heights) > 10 and not broken, broken


def test_code_of_figures_is_folded(site, visit):
    page, _ = visit(site / 'experiments' / 'captioning.html', 1280)
    folded = page.locator('.cell:has(figure) details.code-fold')
    assert folded.count() == page.locator('.cell:has(figure)').count() > 2
    code = folded.first.locator('.sourceCode').first
    assert not code.is_visible()
    folded.first.locator('summary').click()
    assert code.is_visible()


def test_a_term_tells_its_meaning_to_mouse_and_keyboard(site, visit):
    page, _ = visit(site / 'learn' / 'reading_one_head.html', 1280)
    term = page.locator('a.term').first
    shown = "e => getComputedStyle(e, '::after').content.replaceAll('\"', '')"
    meaning = term.get_attribute('data-meaning')
    assert term.evaluate(shown) == 'none' and len(meaning) > 20
    term.focus()
    page.keyboard.press('Shift+Tab')
    page.keyboard.press('Tab')
    assert term.evaluate(shown) == meaning
    page.mouse.move(0, 0)
    page.keyboard.press('Tab')
    assert term.evaluate(shown) == 'none'
    term.hover()
    assert term.evaluate(shown) == meaning
    targets = page.locator('a.term').evaluate_all('e => e.map(x => x.href)')
    assert len(targets) == len(set(targets))


def test_terms_are_bold_in_the_glossary(site, visit):
    page, _ = visit(site / 'glossary.html', 1280)
    assert page.locator('main b[id]').count() > 40 and not page.locator('main a.term').count()


@sizes
def test_explorers_have_a_page(site, visit, width):
    page, wrong = visit(site / 'index.html', width)
    with page.expect_navigation():
        page.locator('header').get_by_role('link', name='Explorer').click()
    frame = page.frame_locator('iframe')
    frame.locator('[data-head="70"]').wait_for()
    assert page.locator('iframe').bounding_box()['width'] > .85 * width
    page.get_by_role('link', name='Vision model').click()
    frame.get_by_text('vision: ').first.wait_for()
    for link in page.locator('.models a').all():
        assert (site / link.get_attribute('href')).exists()
    assert (site / 'explorer_vision.html').stat().st_size < 3e6 and not wrong


def test_the_explorer_of_a_real_model_is_small(site, visit):
    file = site / 'explorer_smollm2.html'
    if not file.exists(): pytest.skip('SmolLM2 is not on this machine: headpursuit fetch smollm2')
    assert file.stat().st_size < 3e6
    page, wrong = visit(site / 'explore.html', 1280)
    page.get_by_role('link', name='SmolLM2').click()
    frame = page.frame_locator('iframe')
    frame.get_by_text('SmolLM2-135M-Instruct: 30 layers of 9 heads').wait_for()
    frame.get_by_role('button', name='L23.H4').first.click()
    assert frame.locator('#card h2').inner_text() == 'Head L23.H4'
    frame.locator('#choose').click()
    assert frame.locator('.pair').count() and not wrong


def test_no_broken_links(site, visit):
    found = {file: visit(file, 1280)[0].evaluate(SOUND) for file in pages(site)}
    for file, page in found.items():
        for href in page['links']:
            if href.startswith(('http:', 'https:', 'mailto:')): continue
            target, anchor = urldefrag(urljoin(file.as_uri(), href))
            target = Path(unquote(target.removeprefix('file://')))
            assert target.exists(), (file.name, href)
            if anchor and target in found:
                assert unquote(anchor) in found[target]['ids'], (file.name, href)


def test_source_links_lead_to_the_definition(site):
    found = 0
    for file in pages(site):
        shown = re.findall(r'<a\s+href="([^"]+)"[^>]*>source</a>.*?<h\d[^>]*>(.*?)</h\d>',
                           file.read_text(encoding='utf-8'), re.S)
        for link, heading in shown:
            path, _, line = link.removeprefix(BLOB).partition('#L')
            assert line.isdigit(), (file.name, link)
            text = (ROOT / path).read_text(encoding='utf-8').splitlines()[int(line) - 1]
            name = re.sub('<.*?>', '', heading).strip().split('.')[-1]
            assert re.match(rf'\s*(def|class) {name}\b', text), (file.name, link, text)
        found += len(shown)
    assert found > 50


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_contrast_is_aa(site, visit, contrast, theme):
    for file in pages(site):
        found = contrast(visit(file, 1280, theme)[0])
        assert found and found[0][0] >= 4.5, (file.relative_to(site), theme, found[:3])


@sizes
def test_search_finds_matching_pursuit(site, visit, width):
    page, wrong = visit(site / 'learn' / 'signals_and_dictionaries.html', width)
    page.keyboard.press('/')
    page.keyboard.type('matching pursuit')
    page.locator('#results li a').first.wait_for()
    assert any('Matching pursuit' in t for t in page.locator('#results li a').all_inner_texts())
    page.locator('#search').fill('editing heads')
    assert page.locator('#results li a').first.inner_text() == 'Editing heads'
    page.locator('#search').fill('matching pursuit')
    page.keyboard.press('ArrowDown')
    with page.expect_navigation(): page.keyboard.press('Enter')
    assert 'matching pursuit' in page.locator('main').inner_text().lower() and not wrong
    visit(site / 'index.html', width)
    page.keyboard.press('/')
    page.keyboard.type('zebra crossings everywhere')
    page.get_by_text('Nothing found').wait_for()


def test_theme_is_switched_and_kept(site, visit):
    page, _ = visit(site / 'index.html', 1280)
    theme = lambda: page.evaluate('document.documentElement.dataset.theme')
    assert theme() == 'light'
    page.locator('#theme').click()
    page.reload()
    assert theme() == 'dark'
    page.locator('#theme').click()
    assert theme() == 'light'


def test_menu_on_a_phone(site, visit):
    page, _ = visit(site / 'index.html', 390)
    assert not page.locator('#sidebar').is_visible()
    page.locator('#menu').tap()
    sidebar = page.locator('#sidebar')
    explorer = sidebar.get_by_text('Head explorer').or_(
        sidebar.get_by_role('link', name='explorer'))
    explorer.first.scroll_into_view_if_needed()
    assert page.locator('#menu').get_attribute('aria-expanded') == 'true'


@sizes
def test_explorer_page_answers(site, visit, width):
    page, wrong = visit(site / 'explorer.html', width)
    frame = page.frame_locator('iframe[title="Head explorer"]').first
    cell = frame.locator('[data-head="70"]')
    cell.hover()
    assert 'L2.H6' in frame.locator('#tip').inner_text()
    if width < 500: cell.tap()
    else: cell.click()
    assert frame.locator('#card h2').inner_text() == 'Head L2.H6'
    cell.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('Enter')
    assert frame.locator('#card h2').inner_text() == 'Head L2.H7' and not wrong


def test_every_page_can_be_taken_home(site, visit):
    for file in pages(site):
        page, _ = visit(file, 1280)
        links = page.locator('.code-links a')
        assert links.all_inner_texts()[-1] == 'Download notebook', file.name
        download = unquote(links.last.evaluate('a => a.href').removeprefix('file://'))
        assert Path(download).suffix == '.ipynb'
        notebook = Path(download).read_text(encoding='utf-8')
        installs = ("if 'google.colab' in str(get_ipython())" in notebook
                    and '#| default_exp' not in notebook)
        offers = links.first.inner_text() == 'Open in Colab'
        assert offers == installs, f'{file.name}: Colab would find no library there'
        room, has_code = file.parent.name, '"cell_type": "code"' in notebook
        if room in ('learn', 'howto', 'experiments') and file.stem != 'index' and has_code:
            assert offers, f'{file.name} cannot be opened in Colab'


def test_from_the_first_page_to_an_edited_head_of_an_own_model(site, visit, tmp_path):
    "What a newcomer does: follow the links from the first page, paste every cell, and nothing else"
    page, _ = visit(site / 'index.html', 1280)
    for link in ('your model', 'a concept of your own', 'share the edit'):
        with page.expect_navigation():
            page.locator('main').get_by_role('link', name=link, exact=True).first.click()
        folder = tmp_path / link
        folder.mkdir()
        cells = page.locator('.cell code.sourceCode.python').all_inner_texts()
        (folder / 'pasted.py').write_text('\n'.join(cells), encoding='utf-8')
        command = [sys.executable, 'pasted.py']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, (link, done.stderr[-2000:])
    assert (tmp_path / 'share the edit' / 'no-colours' / 'adapter_model.safetensors').exists()
