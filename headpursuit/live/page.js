// The live part of the page: it runs the model and ranks heads for words that are typed.
// It stands on the explorer's script, whose state and small tools it uses.
'use strict';

const L = JSON.parse($('live-data').textContent);
const LOWEST = -2, HIGHEST = 6, FIRST = -1;  // factors
const MOST_ATOMS = 50, DRAWS = 100;  // own words, and random sets to compare them with
const SHOWN = 8, STEPS = 12;  // next tokens, and steps of a pursuit
const live = {alphas: new Map(), tokenizer: new Tokenizer(L.tokenizer), own: null};

const pause = (time = 0) => new Promise(done => setTimeout(done, time));
const rounded = x => +x.toFixed(2);
const signed = x => `${rounded(x)}`.replace('-', '−');
const soft = text => el('span', {class: 'soft'}, text);
const column = (name, span = 1) =>
  el('th', {scope: 'col', colspan: span, class: span > 1 ? 'number' : ''}, name);
const number = text => el('td', {class: 'number'}, text);
const bar = (share, kind = 'wide') => el('td', {class: kind}, meter(share));
function later(act, wait) {  // act once, when no call has come for a while
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(act, wait); };
}

// ---- the weights: text at the end of the page, turned into numbers when they are first needed
function start() { return live.loading ??= load(); }

async function load() {
  const progress = el('progress', {max: 1, value: 0, 'aria-label': 'Loading the weights'});
  $('start').replaceChildren(progress);
  while (document.readyState === 'loading') {  // the page itself is still coming in
    const come = [...$('weights')?.childNodes ?? []].reduce((sum, node) => sum + node.length, 0);
    progress.value = .8 * come / L.size;
    await pause(100);
  }
  const text = $('weights').textContent, bytes = new Uint8Array(L.bytes), piece = 2 ** 19;
  let n = 0;
  for (let i = 0; i < text.length; i += piece) {
    const part = atob(text.slice(i, i + piece));
    for (let j = 0; j < part.length; j++) bytes[n++] = part.charCodeAt(j);
    progress.value = .8 + .2 * i / text.length;
    await pause();
  }
  $('weights').remove();
  const tensors = readSafetensors(bytes.buffer);
  live.model = new Llama(L.config, tensors);
  const outputs = Array.from({length: D.layers}, (_, l) =>
    live.model.weight(l, 'self_attn.o_proj.weight'));
  const {covariance} = tensors, dictionary = live.model.unembedding;
  live.heads = new Heads(L.config, outputs, covariance, dictionary, L.counts);
  $('start').replaceChildren();
  drawSteps();
}

// ---- the passage, before and after
function factors() {  // of every head, or nothing if none is changed
  if ([...live.alphas.values()].every(a => a === 1)) return null;
  const all = new Float32Array(D.layers * D.heads).fill(1);
  for (const [i, a] of live.alphas) all[i] = a;
  return all;
}

async function write(ids, alphas, count) {  // the next token's probabilities and a continuation
  const cache = live.model.emptyCache(), logits = live.model.forward(ids, cache, alphas);
  let written = [];
  for (const ids of live.model.greedy(logits, cache, alphas, count)) {
    written = [...ids];
    await pause();
  }
  return {text: live.tokenizer.decode(written), chances: softmax(logits)};
}

async function run() {  // one at a time; what has changed meanwhile is worked out next
  live.again = true;
  if (live.running) return;
  live.running = true;
  await start();
  while (live.again) {
    live.again = false;
    await compute();
  }
  live.running = false;
}
const runAfterTyping = later(run, 200);

async function compute() {
  const ids = live.tokenizer.encode($('passage').value), key = ids.join();
  const room = L.config.context - L.new_tokens, fits = ids.length > 0 && ids.length <= room;
  $('length').textContent =
    `${ids.length} tokens of at most ${room}; ${L.new_tokens} more are written.`;
  $('length').classList.toggle('warn', ids.length > room);
  if (!fits) {
    live.shown = null;
    $('texts').replaceChildren(soft(ids.length ? 'The passage is too long.' : 'Type something.'));
    $('next').replaceChildren();
    return;
  }
  $('texts').classList.add('busy');
  await pause();
  if (live.before?.key !== key) live.before = {key, ...await write(ids, null, L.new_tokens)};
  const alphas = factors();
  const after = alphas ? await write(ids, alphas, L.new_tokens) : null;
  live.shown = {key, alphas: String(alphas), before: live.before, after};
  $('texts').classList.remove('busy');
  drawTexts();
}

function drawTexts() {
  if (!live.shown) return;
  const {before, after} = live.shown, words = new Set(D.concepts[state.concept].words);
  const edited = () => {
    if (!live.alphas.size) return soft('select heads, and move their sliders');
    if (!after) return soft('every factor is 1: nothing is edited');
    return after.text === before.text ? soft('unchanged') : completion(after.text, words);
  };
  $('texts').replaceChildren(el('dl', {},
    el('dt', {}, 'unedited'), el('dd', {id: 'before'}, completion(before.text, words)),
    el('dt', {}, 'edited'), el('dd', {id: 'after'}, edited())));
  const likely = chances => [...chances.keys()]
    .sort((a, b) => chances[b] - chances[a]).slice(0, SHOWN);
  const each = after ? [before.chances, after.chances] : [before.chances];
  const most = i => Math.max(...each.map(chances => chances[i]));
  const rows = [...new Set(each.flatMap(likely))].sort((a, b) => most(b) - most(a))
    .filter((i, n) => n < 3 || most(i) >= .01).slice(0, SHOWN);
  const shares = i => each.flatMap((chances, n) => [
    bar(chances[i], n ? 'half' : 'half before'),
    number(chances[i] < .005 ? '<.01' : two(chances[i]))]);
  $('next').replaceChildren(el('h3', {}, 'The next token'), table(
    [column('token'), column('probability', 2), ...after ? [column('edited', 2)] : []],
    rows.map(i => el('tr', {}, el('td', {}, token(L.names[i])), shares(i)))));
}

// ---- the heads and their sliders
function followSelection() {  // every selected head has a factor; a new one takes that of the last
  const last = [...live.alphas.values()].at(-1) ?? FIRST;
  const heads = [...state.selected].sort((a, b) => a - b);
  const changed = key(heads) !== key(live.alphas.keys());
  live.alphas = new Map(heads.map(i => [i, live.alphas.get(i) ?? last]));
  return changed;
}

function drawPicks() {
  const top = n => best[state.concept].slice(0, n);
  const take = n => el('button', {
    id: `pick-${n}`, 'aria-pressed': key(top(n)) === key(live.alphas.keys()),
    onclick: () => { selectAll(top(n)); $(`pick-${n}`).focus(); },
  }, `${n}`);
  const clear = el('button', {onclick: () => { selectAll([]); $('name').focus(); }}, 'Clear');
  $('picks').replaceChildren(
    el('span', {}, `Heads: the top of ${D.concepts[state.concept].name}`), ...[1, 2, 3].map(take),
    el('label', {for: 'name'}, 'or by name'),
    el('input', {id: 'name', class: 'words short', placeholder: 'L2.H6', autocomplete: 'off',
      onkeydown: e => { if (e.key === 'Enter') pickByName(); }}),
    el('button', {onclick: pickByName}, 'Add'), ...live.alphas.size ? [clear] : []);
}

function pickByName() {
  const i = headOf($('name').value);
  const ranges = `layers from 0 to ${D.layers - 1} and heads from 0 to ${D.heads - 1}`;
  $('unknown').textContent = i === null ? `Write a head as L2.H6, with ${ranges}.` : '';
  if (i !== null) selectAll([...state.selected, i]);
  $('name').focus();
}

function slider(name, value, set) {  // [the slider, its number]
  const shown = el('output', {class: 'number'}, signed(value));
  const moved = e => {
    shown.textContent = signed(+e.target.value);
    set(+e.target.value);
    run();
    drawCode();
    touched();
  };
  const attributes = {type: 'range', min: LOWEST, max: HIGHEST, step: .1, value, oninput: moved};
  return [el('input', {...attributes, 'aria-label': `Factor of ${name}`}), shown];
}

function drawSliders() {
  const all = [...live.alphas];
  const remove = i => { select(i); $('name').focus(); };
  const rows = all.map(([i, a]) => [
    el('button', {onclick: () => openCard(i)}, label(i)),
    ...slider(label(i), a, x => live.alphas.set(i, x)),
    el('button', {'aria-label': `Remove ${label(i)}`, onclick: () => remove(i)}, '✕')]);
  const setAll = x => all.forEach(([i], n) => {
    live.alphas.set(i, x);
    rows[n][1].value = x;
    rows[n][2].textContent = signed(x);
  });
  if (all.length > 1) {
    rows.push([el('span', {}, 'all'), ...slider('all heads', all[0][1], setAll), el('span')]);
  }
  $('factor').hidden = !all.length;
  $('sliders').replaceChildren(...rows.flat());
  drawCode();
}

function drawCode() {
  const heads = [...live.alphas.keys()], alphas = [...live.alphas.values()].map(rounded);
  $('live-code').replaceChildren(...heads.length ? [editCode(heads, alphas)] : []);
}

// ---- own words: a concept like the others, ranked here
async function rankWords(show = true) {
  const mine = live.ranking = {}, stale = () => live.ranking !== mine;
  const words = $('words').value.split(/[,;\n]+/);
  const {atoms, report} = atomsOf(words, L.names, live.tokenizer);
  $('own-report').replaceChildren(...wordReport(atoms, report));
  $('own-null').replaceChildren();
  if (!atoms.length || atoms.length > MOST_ATOMS) {
    forgetWords();
    return;
  }
  await start();
  if (stale()) return;
  const plain = new Set(atoms.map(i => L.names[i].trim().toLowerCase()));
  keepWords({name: 'your words', scores: live.heads.score(atoms), words: [...plain]}, show);
  const drawn = [];
  for (const ids of live.heads.randomSets(atoms, DRAWS, generator(0))) {
    drawn.push(live.heads.score(ids));
    if (drawn.length % 5 === 0) await pause();
    if (stale()) return;
  }
  $('own-null').replaceChildren(nullTable(live.own.scores, drawn));
}

function wordReport(atoms, report) {  // what became of each word
  const kept = [...new Set(report.flatMap(r => r.tokens))].map(token).join(' ');
  const lost = report.filter(r => !r.tokens.length)
    .map(r => `${r.word} (${r.pieces.map(token).join('|')})`);
  const lines = [];
  if (kept) lines.push(el('p', {class: 'soft'}, `${atoms.length} atoms: ${kept}`));
  if (lost.length) lines.push(el('p', {}, `Left out, as no single token: ${lost.join(', ')}`));
  if (atoms.length > MOST_ATOMS) {
    lines.push(el('p', {class: 'warn'},
      `More than ${MOST_ATOMS} atoms need a pursuit: take fewer words, or rank_heads in Python.`));
  }
  return lines;
}

function nullTable(scores, drawn) {  // as `stand_out` in Python
  const tops = drawn.map(s => Math.max(...s));
  const chance = s => (1 + tops.filter(t => t >= s).length) / (1 + tops.length);
  const expected = i => drawn.reduce((sum, s) => sum + s[i], 0) / drawn.length;
  const heads = best[D.concepts.indexOf(live.own)].slice(0, 6);
  const row = i => el('tr', {},
    el('td', {}, el('button', {onclick: () => openCard(i)}, label(i))),
    [scores[i], expected(i), chance(scores[i])].map(x => number(two(x))));
  const names = ['score', 'random words', 'p'];
  return el('div', {}, el('h3', {}, 'Your words beside random ones'),
    table([column('head'), ...names.map(n => el('th', {scope: 'col', class: 'number'}, n))],
      heads.map(row)),
    el('p', {class: 'soft'},
      `Random words: the head's mean score for ${drawn.length} random sets of tokens, as many and ` +
      'as frequent as yours. p: how often the best head of such a set scores as high.'));
}

function keepWords(concept, show) {
  const order = [...concept.scores.keys()]
    .sort((a, b) => concept.scores[b] - concept.scores[a] || a - b);
  const j = live.own ? D.concepts.indexOf(live.own) : D.concepts.length;
  live.own = D.concepts[j] = {...concept, top: order.slice(0, D.concepts[0].top.length)};
  best[j] = order;
  if (!$('concept').options[j]) $('concept').append(el('option', {value: j}, concept.name));
  setConcept(show ? j : state.concept);
}

function forgetWords() {
  if (!live.own) return;
  const j = D.concepts.indexOf(live.own);
  if (state.concept === j) setConcept(0);
  D.concepts.splice(j, 1);
  best.splice(j, 1);
  $('concept').options[j].remove();
  live.own = null;
  drawCard();
}

// ---- the pursuit of the head on the card, step by step
function drawSteps() {
  const i = state.head;
  const title = el('h2', {id: 'steps-title'}, `How the atoms of ${label(i)} are found`);
  if (!live.heads) {
    $('steps').replaceChildren(title, el('p', {class: 'soft'}, 'This needs the model.'),
      el('button', {onclick: () => run()}, 'Start the model'));
    return;
  }
  live.path = {head: i, steps: live.heads.pursue(i, STEPS)};
  const {steps} = live.path, now = Math.min(live.step ?? 0, steps.length - 1);
  if (!steps.length) {
    const never = 'It writes the same for every prompt: there is nothing to explain.';
    $('steps').replaceChildren(title, el('p', {}, never));
    return;
  }
  const show = t => {
    live.step = t;
    $('step').replaceChildren(...stepReport(steps, t));
  };
  $('steps').replaceChildren(title,
    el('div', {class: 'row'}, el('label', {for: 'step-slider'}, 'Step'),
      el('input', {id: 'step-slider', type: 'range', min: 1, max: steps.length, value: now + 1,
        style: 'flex: 1', oninput: e => show(e.target.value - 1)})),
    el('div', {id: 'step', 'aria-live': 'polite'}));
  show(now);
}

function stepReport(steps, t) {
  const {candidates, explained} = steps[t];
  const left = t ? Math.max(0, 1 - steps[t - 1].explained) : 1;
  const row = ({id, share}, n) => el('tr', {class: n ? '' : 'now'},
    el('td', {}, token(L.names[id])), bar(share), number(two(share)));
  return [
    el('p', {}, `Step ${t + 1}: ${two(left)} of the variance is left. Most of it lies along `,
      el('strong', {}, token(L.names[candidates[0].id])),
      `, which is chosen; with it, ${two(explained)} is explained.`),
    table([column('candidate'), column('share of variance along it', 2)], candidates.map(row))];
}

// ---- putting it on the page
$('concept').parentElement.after($('live-parts').content.cloneNode(true));
$('strongest').after(el('div', {id: 'own-null', 'aria-live': 'polite'}));
$('edit').before($('live-sections').content.cloneNode(true));
$('edit').hidden = !D.edits;
$('start').append(el('button', {id: 'run', onclick: () => run()},
  `Start the model (${(L.bytes / 1e6).toFixed(1)} MB, in this page already)`));
$('examples').append(el('option', {value: ''}, 'an example'),
  ...L.passages.map((p, i) => el('option', {value: i}, `… ${p.split('. ').at(-1)}`)));
$('examples').addEventListener('change', e => {
  $('passage').value = L.passages[e.target.value] ?? $('passage').value;
  e.target.value = '';
  run();
  touched();
});
$('passage').value = L.passages[0] ?? '';
$('passage').addEventListener('input', () => { runAfterTyping(); touched(); });
const rankSoon = later(() => rankWords(), 300);
$('words').addEventListener('input', () => { rankSoon(); touched(); });

addEventListener('view', () => {  // the explorer shows something else
  const changed = followSelection();
  drawPicks();
  drawTexts();
  if (changed) {
    drawSliders();
    run();
  }
  if (live.path?.head !== state.head) drawSteps();
});
drawPicks();
drawSteps();

// ---- what a link says beside the explorer's own parts
link.alpha = {
  write: () => [...live.alphas.values()].map(rounded).join(),
  read: (text, given) => {  // one for all heads, or one for each in the order of the link
    const alphas = text.split(',').map(Number).filter(Number.isFinite);
    (given.get('edit') ?? '').split(',').map(headOf).forEach((i, n) => {
      const alpha = Math.min(HIGHEST, Math.max(LOWEST, alphas[n] ?? alphas[0] ?? 1));
      if (live.alphas.has(i)) live.alphas.set(i, alpha);
    });
    drawSliders();
    run();
  },
};
link.text = {
  write: () => $('passage').value === L.passages[0] ? '' : $('passage').value,
  read: text => { $('passage').value = text; run(); },
};
link.words = {
  write: () => live.own ? $('words').value : '',
  read: (text, given) => {  // the map shows them, unless the link says another concept
    $('words').value = text;
    rankWords(!D.concepts.some(c => c !== live.own && c.name === given.get('concept')));
  },
};
readLink();
