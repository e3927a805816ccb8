// What the statistics of the heads say about any words: the same scores as in Python.
'use strict';

// ---- from words to atoms: `Concept.from_words` with its usual options
function plural(word) {
  if (/[^aeiou]y$/.test(word)) return word.slice(0, -1) + 'ies';
  return word + (/(s|x|z|ch|sh)$/.test(word) ? 'es' : 's');
}

function variants(word) {  // the spellings under which a word can occur, the plain word first
  const forms = [word];
  if (/^\p{L}+$/u.test(word)) forms.push(plural(word));
  const cased = forms.flatMap(f => {
    const [first, ...rest] = f;
    return [f, first.toUpperCase() + rest.join(''), first.toLowerCase() + rest.join('')];
  });
  return [...new Set(cased.flatMap(f => [` ${f}`, f]))];
}

// Each word with the tokens it has, and the atoms of all; a word of several tokens has none
function atomsOf(words, names, tokenizer) {  // names: id -> token as readable text
  const vocabulary = new Map();
  names.forEach((name, id) => { if (!vocabulary.has(name)) vocabulary.set(name, id); });
  const atoms = [], report = [];
  for (const word of new Set(words.map(w => w.trim()).filter(Boolean))) {
    let found = variants(word).filter(v => vocabulary.has(v)).map(v => vocabulary.get(v));
    const cut = tokenizer.encode(` ${word}`, false).filter(i => tokenizer.tokens[i] !== 'Ġ');
    if (!found.length && cut.length === 1) found = cut;
    for (const id of found) if (!atoms.includes(id)) atoms.push(id);
    report.push({word, tokens: found.map(i => names[i]), pieces: cut.map(i => names[i])});
  }
  return {atoms, report};
}

// ---- the heads: write matrices and covariances as the model and the statistics have them
class Heads {
  // output: layer -> (width, heads * size), the output projections
  // covariance: (layers * heads, size, size); dictionary: (v, width); counts: v, for the null
  constructor({width, layers, heads, headDim}, output, covariance, dictionary, counts) {
    Object.assign(this, {width, layers, heads, size: headDim});
    Object.assign(this, {output, covariance, dictionary, counts});
    this.energies = Array.from({length: layers * heads}, (_, h) => this.energy(this.matrix(h), h));
  }

  matrix(head) {  // W: (width, size), one head's columns of its layer's output projection
    const {width, heads, size} = this, W = new Float64Array(width * size);
    const O = this.output[Math.floor(head / heads)], first = head % heads * size;
    for (let d = 0; d < width; d++) {
      for (let i = 0; i < size; i++) W[d * size + i] = O[d * heads * size + first + i];
    }
    return W;
  }

  energy(P, head) {  // tr(P C Pᵀ) for P (rows, size)
    let sum = 0;
    for (let r = 0; r < P.length; r += this.size) sum += this.seen(P, r, head);
    return sum;
  }

  seen(P, r, head) {  // p C pᵀ for the row that begins at r
    const k = this.size, C = this.covariance, c = head * k * k;
    let sum = 0;
    for (let i = 0; i < k; i++) sum += P[r + i] * dot(C, c + i * k, P, r, k);
    return sum;
  }

  // An orthonormal basis of the atoms' span, by Gram and Schmidt, twice for accuracy
  basis(ids) {
    const d = this.width, basis = [];
    for (const id of ids) {
      const q = Float64Array.from(this.dictionary.subarray(id * d, (id + 1) * d));
      const length = Math.sqrt(dot(q, 0, q, 0, d));
      for (let round = 0; round < 2; round++) {
        for (const b of basis) {
          const share = dot(b, 0, q, 0, d);
          for (let i = 0; i < d; i++) q[i] -= share * b[i];
        }
      }
      const left = Math.sqrt(dot(q, 0, q, 0, d));
      if (left > 1e-5 * length) basis.push(q.map(x => x / left));  // else it adds nothing
    }
    return basis;
  }

  // Every head's share of variance inside the span of the atoms, layer by layer:
  // tr(P C Pᵀ) / tr(W C Wᵀ) with P = QᵀW
  score(ids) {
    const {heads, size, width} = this, basis = this.basis(ids), scores = [];
    for (const O of this.output) {
      const row = heads * size, seen = basis.map(() => new Float64Array(row));
      basis.forEach((q, b) => {
        for (let d = 0; d < width; d++) {
          const share = q[d];
          for (let i = 0; i < row; i++) seen[b][i] += share * O[d * row + i];
        }
      });
      for (let h = 0; h < heads; h++) {
        const head = scores.length, total = this.energies[head];
        const inside = seen.reduce((sum, P) => sum + this.seen(P, h * size, head), 0);
        scores.push(total > 0 ? Math.min(1, Math.max(0, inside / total)) : 0);
      }
    }
    return scores;
  }

  // The null: for each atom another token, drawn among the 30 nearest to it in frequency
  *randomSets(ids, draws, random, nearest = 30) {
    const count = i => this.counts[i], ties = this.counts.map(() => random());
    const others = [...this.counts.keys()].filter(i => !ids.includes(i))
      .sort((a, b) => count(a) - count(b) || ties[a] - ties[b]);
    const below = n => others.filter(i => count(i) < n).length;
    const ranges = ids.map(id => [below(count(id)), below(count(id) + 1)]);  // equally often
    for (let n = 0; n < draws; n++) {
      const drawn = new Set();
      for (const [first, end] of ranges) {
        const place = first + Math.floor(random() * Math.max(1, end - first)), near = [];
        for (let gap = 0; near.length < nearest && gap <= others.length; gap++) {
          for (const at of new Set([place - gap, place + gap])) {
            if (at >= 0 && at < others.length && !drawn.has(others[at])) near.push(others[at]);
          }
        }
        drawn.add(near[Math.floor(random() * Math.min(nearest, near.length))]);
      }
      yield [...drawn];
    }
  }

  // SOMP with the energy rule over the whole dictionary. Of each step the best candidates, with the
  // share of the head's variance along each (the first is chosen), and what all chosen ones explain
  pursue(head, steps, candidates = 5) {
    const {width: d, size: k, dictionary: D} = this, v = D.length / d, W = this.matrix(head);
    const total = this.energies[head], taken = [], path = [];
    const lengths = Float64Array.from({length: v}, (_, j) => Math.sqrt(dot(D, j * d, D, j * d, d)));
    let explained = 0;
    const P = new Float64Array(v * k);  // what is left of the unit atoms, in the head's coordinates
    for (let j = 0; j < v; j++) {
      for (let i = 0; i < d; i++) {
        const share = D[j * d + i] / (lengths[j] || 1);
        for (let c = 0; c < k; c++) P[j * k + c] += share * W[i * k + c];
      }
    }
    for (let t = 0; t < steps && total > 0 && 1 - explained > 1e-12; t++) {
      const shares = Float64Array.from({length: v}, (_, j) => this.seen(P, j * k, head) / total);
      const best = [...shares.keys()].filter(j => lengths[j] > 0 && !taken.includes(j))
        .sort((a, b) => shares[b] - shares[a]).slice(0, candidates);
      taken.push(best[0]);
      const basis = this.basis(taken), q = basis.at(-1);
      if (basis.length < taken.length) break;  // nothing outside the span is left
      const m = new Float64Array(k);  // the new direction, in the head's coordinates
      for (let i = 0; i < d; i++) for (let c = 0; c < k; c++) m[c] += q[i] * W[i * k + c];
      explained += this.seen(m, 0, head) / total;
      for (let j = 0; j < v; j++) {
        const share = dot(D, j * d, q, 0, d) / (lengths[j] || 1);
        for (let c = 0; c < k; c++) P[j * k + c] -= share * m[c];
      }
      path.push({candidates: best.map(id => ({id, share: shares[id]})), explained});
    }
    return path;
  }
}

// Random numbers from a seed, so that the null is the same each time (mulberry32)
function generator(seed) {
  return () => {
    seed = (seed + 0x6D2B79F5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
