import os
import shutil

os.environ['HF_HUB_OFFLINE'] = '1'  # a forgotten download must fail at once, not after retries
import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
QUIET = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']


@pytest.fixture(scope='module')
def chromium():
    "A browser without a window"
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='the browser tests need the Python package playwright')
    names = ('chromium', 'chromium-browser', 'google-chrome')
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None: pytest.skip('the browser tests need a Chromium: none is on the path')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def new_page(chromium):
    "A function of a width: a fresh page, and a list of what goes wrong on it, requests included"
    contexts = []

    def new(width, **options):
        phone = width < 500
        context = chromium.new_context(viewport=dict(width=width, height=800),
                                       has_touch=phone, is_mobile=phone, **options)
        contexts.append(context)
        page = context.new_page()
        wrong = []

        def requested(request):
            if not request.url.startswith(('file:', 'about:', 'data:')): wrong.append(request.url)
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('console', lambda m: wrong.append(m.text))
        page.on('request', requested)
        return page, wrong
    yield new
    for context in contexts: context.close()


CONTRAST = '''() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const paint = c => { pen.fillStyle = c; pen.fillRect(0, 0, 1, 1); };
  const linear = x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = () => [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)
    .map(x => linear(x / 255)).reduce((s, x, i) => s + x * [.2126, .7152, .0722][i], 0);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !e.getClientRects().length) continue;
    const chain = [];  // grounds, from the page to the element
    for (let a = e; a; a = a.parentElement) chain.unshift(a);
    chain.forEach(x => paint(getComputedStyle(x).backgroundColor));
    const back = light();
    paint(getComputedStyle(e).color);
    const front = light();
    const ratio = (Math.max(back, front) + .05) / (Math.min(back, front) + .05);
    found.push([ratio, texts.currentNode.data]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}'''


@pytest.fixture(scope='session')
def contrast():
    "A function of a page: (contrast ratio, text) of everything that is shown, the worst first"
    return lambda page: page.evaluate(CONTRAST)
