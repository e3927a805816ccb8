// The live part of the page: it runs the model and ranks heads for words that are typed.
// It stands on the explorer's script, whose state and small tools it uses.
'use strict';

const L = JSON.parse($('live-data').textContent);
const LOWEST = -2, HIGHEST = 6, MOST_ATOMS = 50, NULL_DRAWS = 100, SHOWN = 8;
const live = {alphas: new Map(), tokenizer: new Tokenizer(L.tokenizer), own: null};
const pause = () => new Promise(done => setTimeout(done));
const signed = x => `${+x.toFixed(2)}`.replace('-', '−');
function later(act, wait) {  // act once, when no call has come for a while
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(act, wait); };
}

// ---- the weights: text at the end of the page, turned into numbers when they are first needed
function start() { return live.loading ??= load(); }

async function load() {
  const bar = el('progress', {max: 1, value: 0, 'aria-label': 'Loading the weights'});
  $('start').replaceChildren(bar);
  const come = () => [...$('weights')?.childNodes ?? []].reduce((sum, node) => sum + node.length, 0);
  while (document.readyState === 'loading') {  // a slow line: the page itself is still coming in
    bar.value = .8 * come() / L.size;
    await new Promise(done => setTimeout(done, 100));
  }
  const text = $('weights').textContent, bytes = new Uint8Array(L.size / 4 * 3), piece = 2 ** 19;
  let n = 0;
  for (let i = 0; i < text.length; i += piece) {
    const part = atob(text.slice(i, i + piece));
    for (let j = 0; j < part.length; j++) bytes[n++] = part.charCodeAt(j);
    bar.value = .8 + .2 * i / text.length;
    await pause();
  }
  $('weights').remove();
  const tensors = readSafetensors(bytes.buffer), c = L.config;
  live.model = new Llama(c, tensors);
  const outputs = Array.from({length: c.layers}, (_, l) => live.model.weight(l, 'self_attn.o_proj.weight'));
  live.heads = new Heads(c, outputs, tensors.covariance, live.model.unembedding, L.counts);
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

async function write(ids, alphas, count, stale) {  // the next token's probabilities and a continuation
  const cache = live.model.emptyCache(), logits = live.model.forward(ids, cache, alphas);
  let out = [];
  for (const sofar of live.model.greedy(logits, cache, alphas, count)) {
    out = [...sofar];
    await pause();
    if (stale()) return null;
  }
  return {ids: out, text: live.tokenizer.decode(out), chances: softmax(logits)};
}

async function run() {
  await start();
  const mine = live.turn = {}, stale = () => live.turn !== mine;  // a newer run makes this one stop
  const ids = live.tokenizer.encode($('passage').value), room = L.config.context - L.new_tokens;
  $('length').textContent = `${ids.length} tokens of at most ${room}, ${L.new_tokens} more are written`;
  $('length').classList.toggle('warn', ids.length > room);
  if (ids.length > room || !ids.length) {
    $('texts').replaceChildren(el('span', {class: 'soft'}, ids.length ? 'The passage is too long.' : 'Type something.'));
    $('next').replaceChildren();
    return;
  }
  $('texts').classList.add('busy');
  await pause();
  const alphas = factors(), same = live.before?.key === ids.join();
  const before = same ? live.before : await write(ids, null, L.new_tokens, stale);
  if (!before) return;
  live.before = Object.assign(before, {key: ids.join()});
  const after = alphas ? await write(ids, alphas, L.new_tokens, stale) : before;
  if (!after) return;
  live.after = after;
  live.shown = {ids: ids.join(), alphas: String(alphas)};
  drawTexts();
}
const runSoon = later(run, 60), runAfterTyping = later(run, 250);

function drawTexts() {
  const {before, after} = live;
  if (!before || !after) return;
  const words = new Set(D.concepts[state.concept].words), changed = before.text !== after.text;
  const quiet = text => el('span', {class: 'soft'}, text);
  const edited = live.alphas.size > 0 && before !== after;
  $('texts').classList.remove('busy');
  $('texts').replaceChildren(el('dl', {}, el('dt', {}, 'unedited'), el('dd', {id: 'before'}, completion(before.text, words)),
    el('dt', {}, 'edited'), el('dd', {id: 'after'}, !edited ? quiet('select heads, and move their sliders') : changed ? completion(after.text, words) : quiet('unchanged'))));
  const top = chances => [...chances.keys()].sort((a, b) => chances[b] - chances[a]).slice(0, SHOWN);
  const likely = [...new Set([...top(before.chances), ...top(after.chances)])].sort((a, b) => before.chances[b] - before.chances[a]);
  const rows = likely.filter((i, n) => n < 3 || Math.max(before.chances[i], after.chances[i]) >= .01);
  const number = x => x < .005 ? '<.01' : two(x);
  $('next').replaceChildren(el('h3', {}, 'The next token'), table(
    [el('th', {scope: 'col'}, 'token'), el('th', {scope: 'col', colspan: 2, class: 'number'}, 'probability'), ...edited ? [el('th', {scope: 'col', colspan: 2, class: 'number'}, 'edited')] : []],
    rows.map(i => el('tr', {}, el('td', {}, token(L.names[i])), el('td', {class: 'half before'}, meter(before.chances[i])), el('td', {class: 'number'}, number(before.chances[i])),
      ...edited ? [el('td', {class: 'half'}, meter(after.chances[i])), el('td', {class: 'number'}, number(after.chances[i]))] : []))));
}

// ---- the heads and their sliders
function followSelection() {  // every selected head has a factor; a new one takes that of the last
  const last = [...live.alphas.values()].at(-1) ?? -1;
  const kept = [...state.selected].map(i => [i, live.alphas.get(i) ?? last]);
  const changed = kept.length !== live.alphas.size || kept.some(([i]) => !live.alphas.has(i));
  live.alphas = new Map(kept.sort((a, b) => a[0] - b[0]));
  return changed;
}

function drawPicks() {
  const c = D.concepts[state.concept], top = n => best[state.concept].slice(0, n);
  $('picks').replaceChildren(el('span', {}, `Heads: the top of ${c.name}`),
    ...[1, 2, 3].map(n => el('button', {id: `pick-${n}`, 'aria-pressed': key(top(n)) === key(live.alphas.keys()), onclick: () => { selectAll(top(n)); $(`pick-${n}`).focus(); }}, `${n}`)),
    el('label', {for: 'name'}, 'or by name'),
    el('input', {id: 'name', class: 'words short', placeholder: 'L2.H6', autocomplete: 'off', onkeydown: e => { if (e.key === 'Enter') pickByName(); }}),
    el('button', {onclick: pickByName}, 'Add'),
    ...live.alphas.size ? [el('button', {onclick: () => { selectAll([]); $('name').focus(); }}, 'Clear')] : []);
}
function pickByName() {
  const i = headOf($('name').value);
  $('unknown').textContent = i !== null ? '' :
    `Write a head as L2.H6, with layers from 0 to ${D.layers - 1} and heads from 0 to ${D.heads - 1}.`;
  if (i !== null) selectAll([...state.selected, i]);
  $('name').focus();
}

function drawSliders() {
  const all = [...live.alphas];
  const slider = (name, value, set) => {
    const out = el('output', {class: 'number'}, signed(value));
    return [el('input', {type: 'range', min: LOWEST, max: HIGHEST, step: .1, value, 'aria-label': `Factor of ${name}`,
      oninput: e => { out.textContent = signed(+e.target.value); set(+e.target.value); runSoon(); drawCode(); touched(); }}), out];
  };
  const rows = all.map(([i, a]) => [el('button', {onclick: () => openCard(i)}, label(i)), ...slider(label(i), a, x => live.alphas.set(i, x)),
    el('button', {'aria-label': `Remove ${label(i)}`, onclick: () => { select(i); $('name').focus(); }}, '✕')]);
  const together = all.length > 1 ? [el('span', {}, 'all'), ...slider('all heads', all[0][1], x => {
    all.forEach(([i], n) => { live.alphas.set(i, x); rows[n][1].value = x; rows[n][2].textContent = signed(x); });
  }), el('span')] : [];
  $('factor').hidden = !all.length;
  $('sliders').replaceChildren(...together, ...rows.flat());
  drawCode();
}
function drawCode() {
  const heads = [...live.alphas.keys()];
  $('live-code').replaceChildren(...heads.length ? [editCode(heads, [...live.alphas.values()].map(a => +a.toFixed(2)))] : []);
}

// ---- own words: a concept like the others, ranked here
async function rankWords(show = true) {
  const mine = live.ranking = {}, words = $('words').value.split(/[,;\n]+/);
  const {atoms, report} = atomsOf(words, L.names, live.tokenizer), quoted = xs => xs.map(token).join(' ');
  const lost = report.filter(r => !r.tokens.length).map(r => `${r.word} (${r.pieces.map(p => token(p)).join('|') || 'unknown'})`);
  const about = [];
  if (atoms.length) about.push(el('p', {class: 'soft'}, `${atoms.length} atoms: `, quoted([...new Set(report.flatMap(r => r.tokens))])));
  if (lost.length) about.push(el('p', {}, `Left out, as the tokenizer cuts ${lost.length > 1 ? 'them' : 'it'} into pieces: ${lost.join(', ')}`));
  if (atoms.length > MOST_ATOMS) about.push(el('p', {class: 'warn'}, `More than ${MOST_ATOMS} atoms need a pursuit, which this box does not run: take fewer words, or rank_heads.`));
  $('own-report').replaceChildren(...about);
  $('own-null').replaceChildren();
  if (!atoms.length || atoms.length > MOST_ATOMS) { forgetWords(); return; }
  await start();
  if (live.ranking !== mine) return;
  const scores = live.heads.score(atoms);
  keepWords({name: 'your words', scores, words: [...new Set(atoms.map(i => L.names[i].trim().toLowerCase()))]}, show);
  const sums = scores.map(() => 0), tops = [];
  for (const ids of live.heads.randomSets(atoms, NULL_DRAWS, generator(0))) {
    const drawn = live.heads.score(ids);
    drawn.forEach((s, i) => sums[i] += s);
    tops.push(Math.max(...drawn));
    if (tops.length % 5) continue;
    await pause();
    if (live.ranking !== mine) return;
  }
  live.own.expected = sums.map(s => s / tops.length);
  live.own.tops = tops;
  $('own-null').replaceChildren(nullTable());
}

function nullTable() {  // as `stand_out`: how likely the best head of random words scores as high
  const {scores, expected, tops} = live.own, chance = s => (1 + tops.filter(t => t >= s).length) / (1 + tops.length);
  const heads = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 6);
  return el('div', {}, el('h3', {}, 'Your words beside random ones'), table(
    [el('th', {scope: 'col'}, 'head'), el('th', {scope: 'col', class: 'number'}, 'score'), el('th', {scope: 'col', class: 'number'}, 'random words'), el('th', {scope: 'col', class: 'number'}, 'p')],
    heads.map(i => el('tr', {}, el('td', {}, el('button', {onclick: () => openCard(i)}, label(i))), ...[scores[i], expected[i], chance(scores[i])].map(x => el('td', {class: 'number'}, two(x)))))),
    el('p', {class: 'soft'}, `Random words: mean score of ${tops.length} random sets of tokens, as many and as frequent. p: how often the best head of such a set scores as high.`));
}

function keepWords(concept, show) {
  const order = concept.scores.map((_, i) => i).sort((a, b) => concept.scores[b] - concept.scores[a] || a - b);
  const j = live.own ? D.concepts.indexOf(live.own) : D.concepts.length;
  live.own = D.concepts[j] = {...concept, top: order.slice(0, D.concepts[0].top.length)};
  best[j] = order;
  if (!$('concept').options[j]) $('concept').append(el('option', {value: j}, concept.name));
  setConcept(show ? j : state.concept);
}
function forgetWords() {
  live.ranking = null;
  if (!live.own) return;
  const j = D.concepts.indexOf(live.own);
  if (state.concept === j) setConcept(0);
  D.concepts.splice(j, 1);
  best.splice(j, 1);
  $('concept').options[j].remove();
  live.own = null;
  $('own-null').replaceChildren();
  drawCard();
}

// ---- the pursuit of the head on the card, step by step
function drawSteps() {
  const i = state.head, body = [el('h2', {id: 'steps-title'}, `How the atoms of ${label(i)} are found`)];
  if (!live.heads) {
    body.push(el('p', {class: 'soft'}, 'Needs the model.'), el('button', {onclick: () => start()}, 'Start it'));
    $('steps').replaceChildren(...body);
    return;
  }
  if (live.path?.head !== i) live.path = {head: i, steps: live.heads.pursue(i, 12)};
  const steps = live.path.steps, now = Math.min(live.step ?? 0, steps.length - 1);
  if (!steps.length) body.push(el('p', {}, 'It writes the same for every prompt: there is nothing to explain.'));
  else {
    const outcome = el('div', {id: 'step', 'aria-live': 'polite'});
    const show = t => {
      live.step = t;
      const {candidates, explained} = steps[t], rest = t ? 1 - steps[t - 1].explained : 1;
      outcome.replaceChildren(
        el('p', {}, `Step ${t + 1}: ${two(Math.max(0, rest))} of the variance is left. The atom along which most of it lies is `, el('strong', {}, token(L.names[candidates[0].id])), `; with it, ${two(explained)} is explained.`),
        table([el('th', {scope: 'col'}, 'candidate'), el('th', {scope: 'col', colspan: 2, class: 'number'}, 'variance along it')],
          candidates.map(({id, share}, n) => el('tr', {class: n ? '' : 'now'}, el('td', {}, token(L.names[id])), el('td', {class: 'wide'}, meter(share)), el('td', {class: 'number'}, two(share))))));
    };
    body.push(el('div', {class: 'row'}, el('label', {for: 'step-slider'}, 'step'),
      el('input', {id: 'step-slider', type: 'range', min: 1, max: steps.length, value: now + 1, style: 'flex: 1', oninput: e => show(e.target.value - 1)})), outcome);
    show(now);
  }
  $('steps').replaceChildren(...body);
}

// ---- putting it on the page
$('concept').parentElement.after($('live-parts').content.cloneNode(true));
$('strongest').after(el('div', {id: 'own-null', 'aria-live': 'polite'}));
$('edit').before($('live-sections').content.cloneNode(true));
$('edit').hidden = !D.edits;
$('examples').append(el('option', {value: ''}, 'an example'), ...L.passages.map((p, i) => el('option', {value: i}, `… ${p.split('. ').at(-1)}`)));
$('examples').addEventListener('change', e => {
  if (e.target.value !== '') $('passage').value = L.passages[e.target.value];
  e.target.value = '';
  run(); touched();
});
$('passage').value = L.passages[0] ?? '';
$('passage').addEventListener('input', () => { runAfterTyping(); touched(); });
$('words').addEventListener('input', () => { rankSoon(); touched(); });
const rankSoon = later(() => rankWords(), 300);
$('start').append(el('button', {id: 'run', onclick: () => run()}, `Start the model (${(L.size / 4 * 3 / 1e6).toFixed(1)} MB, in this page already)`));

addEventListener('view', () => {  // the explorer shows something else
  const changed = followSelection();
  drawPicks(); drawTexts();
  if (changed) { drawSliders(); run(); }
  if (live.path?.head !== state.head) drawSteps();
});
drawPicks(); drawSteps();
link.alpha = {
  write: () => [...live.alphas.values()].map(a => +a.toFixed(2)).join(),
  read: (text, given) => {  // one for all, or one for each head in the order of the link
    const alphas = text.split(',').map(Number).filter(Number.isFinite), order = (given.get('edit') ?? '').split(',').map(headOf);
    order.forEach((i, n) => { if (live.alphas.has(i)) live.alphas.set(i, Math.min(HIGHEST, Math.max(LOWEST, alphas[n] ?? alphas[0] ?? 1))); });
    drawSliders(); run();
  },
};
link.text = {
  write: () => $('passage').value === L.passages[0] ? '' : $('passage').value,
  read: text => { $('passage').value = text; run(); },
};
link.words = {write: () => live.own ? $('words').value : '', read: (text, given) => {
  $('words').value = text;
  rankWords(!D.concepts.some(c => c !== live.own && c.name === given.get('concept')));
}};
readLink();
