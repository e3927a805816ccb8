import os
import shutil

os.environ['HF_HUB_OFFLINE'] = '1'  # a forgotten download must fail at once, not after retries
import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(scope='module')
def chromium():
    playwright = pytest.importorskip('playwright.sync_api', reason='the browser tests need the Python package playwright')
    path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if path is None: pytest.skip('the browser tests need a Chromium: none is on the path')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
                                                                '--disable-component-update', '--disable-sync'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def new_page(chromium):
    "A function of a width: a fresh page, and the list of what goes wrong on it, requests to elsewhere included"
    contexts = []

    def new(width, **options):
        contexts.append(chromium.new_context(viewport=dict(width=width, height=800), has_touch=width < 500, is_mobile=width < 500, **options))
        page, wrong = contexts[-1].new_page(), []
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('console', lambda m: wrong.append(m.text))
        page.on('request', lambda r: r.url.startswith(('file:', 'about:', 'data:')) or wrong.append(r.url))
        return page, wrong
    yield new
    for c in contexts: c.close()


CONTRAST = '''() => {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const paint = c => { pen.fillStyle = c; pen.fillRect(0, 0, 1, 1); };
  const light = () => [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(x => x / 255)
    .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4).reduce((s, x, i) => s + x * [.2126, .7152, .0722][i], 0);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !e.getClientRects().length) continue;
    for (let chain = [], a = e; ; a = a.parentElement) { chain.unshift(a); if (!a.parentElement) { chain.forEach(x => paint(getComputedStyle(x).backgroundColor)); break; } }
    const back = light(); paint(getComputedStyle(e).color); const front = light();
    found.push([(Math.max(back, front) + .05) / (Math.min(back, front) + .05), texts.currentNode.data]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}'''


@pytest.fixture(scope='session')
def contrast():
    "A function of a page: (contrast ratio, text) of everything that is shown, the worst first"
    return lambda page: page.evaluate(CONTRAST)
