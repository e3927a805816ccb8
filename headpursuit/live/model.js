// A Llama in plain JavaScript: tokenizer, forward pass, edits of heads, greedy continuation.
// Weights are float32; sums are taken in double precision, as JavaScript's numbers are.
'use strict';

// ---- safetensors: 8 bytes with the length of a JSON header, the header, the numbers
function readSafetensors(buffer) {  // ArrayBuffer -> {name: Float32Array}
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, about] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    if (about.dtype !== 'F32') throw new Error(`${name} is ${about.dtype}, not float32`);
    const [start, end] = about.data_offsets;
    tensors[name] = new Float32Array(buffer, 8 + length + start, (end - start) / 4);
  }
  return tensors;
}

// ---- the tokenizer: byte-level byte-pair encoding, as GPT-2 introduced it
// A byte is written as a letter: itself if it is visible in Latin-1, else one from U+0100 on.
const BYTE_LETTERS = (() => {
  const letters = [];
  let next = 256;
  for (let b = 0; b < 256; b++) {
    const visible = (b > 32 && b < 127) || (b > 160 && b !== 173);
    letters.push(String.fromCharCode(visible ? b : next++));
  }
  return letters;
})();
const LETTER_BYTES = new Map(BYTE_LETTERS.map((letter, b) => [letter, b]));

// A word, a number or signs, each with the space before it; English endings; other blanks.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

class Tokenizer {
  constructor({tokens, merges, special, prefix}) {
    this.tokens = tokens;  // id -> token, bytes written as letters
    this.ids = new Map(tokens.map((token, id) => [token, id]));
    this.ranks = new Map(merges.map((pair, rank) => [pair.join(' '), rank]));
    this.special = new Map(special);  // text -> id of tokens that are never cut
    this.specialIds = new Set(this.special.values());
    this.prefix = prefix;  // ids in front of every text
  }

  encode(text, withPrefix = true) {
    const ids = withPrefix ? [...this.prefix] : [];
    let rest = text;
    while (rest) {
      const [at, mark] = this.nextSpecial(rest);
      for (const [word] of rest.slice(0, at).matchAll(WORDS)) ids.push(...this.merge(word));
      if (mark) ids.push(this.special.get(mark));
      rest = rest.slice(at + mark.length);
    }
    return ids;
  }

  nextSpecial(text) {  // where the first special token begins, and which it is; of two the longer
    let at = text.length, mark = '';
    for (const s of this.special.keys()) {
      const i = text.indexOf(s);
      if (i >= 0 && (i < at || (i === at && s.length > mark.length))) { at = i; mark = s; }
    }
    return [at, mark];
  }

  merge(word) {  // join neighbours, always the pair that was learned first, until none is left
    const parts = [...new TextEncoder().encode(word)].map(b => BYTE_LETTERS[b]);
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) { best = rank; at = i; }
      }
      if (at < 0) return parts.map(p => this.ids.get(p));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  decode(ids) {  // special tokens are left out
    const letters = ids.filter(i => !this.specialIds.has(i)).map(i => this.tokens[i]).join('');
    return new TextDecoder().decode(Uint8Array.from(letters, c => LETTER_BYTES.get(c)));
  }
}

// ---- arithmetic: a matrix is a flat Float32Array, row by row
function dot(a, i, b, j, n) {  // four sums, which a processor can work on side by side
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0, k = 0;
  for (; k + 3 < n; k += 4) {
    s0 += a[i + k] * b[j + k];
    s1 += a[i + k + 1] * b[j + k + 1];
    s2 += a[i + k + 2] * b[j + k + 2];
    s3 += a[i + k + 3] * b[j + k + 3];
  }
  for (; k < n; k++) s0 += a[i + k] * b[j + k];
  return s0 + s1 + s2 + s3;
}

function linear(x, rows, W, bias) {  // (rows, in) times the transpose of W (out, in)
  const width = x.length / rows, out = W.length / width;
  const y = new Float32Array(rows * out);
  for (let o = 0; o < out; o++) {
    const w = o * width, b = bias ? bias[o] : 0;
    let r = 0;
    for (; r + 3 < rows; r += 4) {  // a weight, once at hand, is used for four tokens
      const x0 = r * width, x1 = x0 + width, x2 = x1 + width, x3 = x2 + width;
      let s0 = b, s1 = b, s2 = b, s3 = b;
      for (let i = 0; i < width; i++) {
        const weight = W[w + i];
        s0 += weight * x[x0 + i];
        s1 += weight * x[x1 + i];
        s2 += weight * x[x2 + i];
        s3 += weight * x[x3 + i];
      }
      y[r * out + o] = s0;
      y[(r + 1) * out + o] = s1;
      y[(r + 2) * out + o] = s2;
      y[(r + 3) * out + o] = s3;
    }
    for (; r < rows; r++) y[r * out + o] = dot(x, r * width, W, w, width) + b;
  }
  return y;
}

function rmsNorm(x, rows, gain, epsilon) {
  const width = gain.length, y = new Float32Array(x.length);
  for (let r = 0; r < rows; r++) {
    const scale = 1 / Math.sqrt(dot(x, r * width, x, r * width, width) / width + epsilon);
    for (let i = 0; i < width; i++) y[r * width + i] = x[r * width + i] * scale * gain[i];
  }
  return y;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

function softmax(x) {
  const top = x.reduce((a, b) => Math.max(a, b), -Infinity);
  const y = Float32Array.from(x, v => Math.exp(v - top));
  const sum = y.reduce((a, b) => a + b, 0);
  return y.map(v => v / sum);
}

function argmax(x) {  // the first of the largest
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i] > x[best]) best = i;
  return best;
}

// ---- the model
class Llama {
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    this.unembedding = tensors['lm_head.weight'] ?? tensors['model.embed_tokens.weight'];
  }

  weight(layer, name) { return this.tensors[`model.layers.${layer}.${name}`]; }

  project(layer, name, x, rows) {
    const weight = this.weight(layer, `${name}.weight`), bias = this.weight(layer, `${name}.bias`);
    return linear(x, rows, weight, bias);
  }

  // Keys and values of the tokens read so far, for every layer
  emptyCache() {
    const size = this.config.context * this.config.kvHeads * this.config.headDim;
    const rows = () => Array.from({length: this.config.layers}, () => new Float32Array(size));
    return {length: 0, keys: rows(), values: rows()};
  }

  // Read tokens after those of the cache; returns the logits for what comes next.
  // alphas: factor of each head, layer by layer, in front of the output projection.
  forward(ids, cache, alphas = null) {
    const {width, layers, heads, epsilon, context} = this.config;
    const n = ids.length, embedding = this.tensors['model.embed_tokens.weight'];
    if (cache.length + n > context) throw new RangeError(`more than ${context} tokens`);
    const x = new Float32Array(n * width);  // the residual stream
    ids.forEach((id, t) => x.set(embedding.subarray(id * width, (id + 1) * width), t * width));
    for (let l = 0; l < layers; l++) {
      const factors = alphas && alphas.slice(l * heads, (l + 1) * heads);
      const a = rmsNorm(x, n, this.weight(l, 'input_layernorm.weight'), epsilon);
      add(x, this.attention(l, a, n, cache, factors));
      const m = rmsNorm(x, n, this.weight(l, 'post_attention_layernorm.weight'), epsilon);
      add(x, this.mlp(l, m, n));
    }
    cache.length += n;
    const last = x.subarray((n - 1) * width), gain = this.tensors['model.norm.weight'];
    return linear(rmsNorm(last, 1, gain, epsilon), 1, this.unembedding);
  }

  attention(l, x, n, cache, factors) {
    const {heads, kvHeads, headDim} = this.config, start = cache.length;
    const q = this.project(l, 'self_attn.q_proj', x, n);
    const k = this.project(l, 'self_attn.k_proj', x, n);
    const v = this.project(l, 'self_attn.v_proj', x, n);
    this.rotate(q, n, heads, start);
    this.rotate(k, n, kvHeads, start);
    const kvWidth = kvHeads * headDim, keys = cache.keys[l], values = cache.values[l];
    keys.set(k, start * kvWidth);
    values.set(v, start * kvWidth);
    const z = new Float32Array(n * heads * headDim), scale = 1 / Math.sqrt(headDim);
    for (let h = 0; h < heads; h++) {
      const from = Math.floor(h * kvHeads / heads) * headDim;  // neighbouring heads share keys
      const alpha = factors ? factors[h] : 1;
      for (let t = 0; t < n; t++) {
        const at = (t * heads + h) * headDim;
        const scores = new Float32Array(start + t + 1);
        for (let s = 0; s < scores.length; s++) {
          scores[s] = dot(q, at, keys, s * kvWidth + from, headDim) * scale;
        }
        softmax(scores).forEach((p, s) => {
          for (let i = 0; i < headDim; i++) z[at + i] += p * values[s * kvWidth + from + i];
        });
        for (let i = 0; i < headDim; i++) z[at + i] *= alpha;  // the edit
      }
    }
    return this.project(l, 'self_attn.o_proj', z, n);
  }

  rotate(x, n, heads, start) {  // rotary position embedding: the two halves of a head turn together
    const {headDim, frequencies, ropeScale} = this.config, half = headDim / 2;
    for (let t = 0; t < n; t++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround((start + t) * frequencies[i]);
        const cos = Math.cos(angle) * ropeScale, sin = Math.sin(angle) * ropeScale;
        for (let h = 0; h < heads; h++) {
          const a = (t * heads + h) * headDim + i, b = a + half, first = x[a];
          x[a] = first * cos - x[b] * sin;
          x[b] = x[b] * cos + first * sin;
        }
      }
    }
  }

  mlp(l, x, n) {
    const gate = this.project(l, 'mlp.gate_proj', x, n), up = this.project(l, 'mlp.up_proj', x, n);
    for (let i = 0; i < gate.length; i++) gate[i] *= up[i] / (1 + Math.exp(-gate[i]));  // SiLU
    return this.project(l, 'mlp.down_proj', gate, n);
  }

  // Continue token by token, always with the most likely one; the ids so far, after each token.
  // `logits`: for what follows the cache.
  *greedy(logits, cache, alphas, count) {
    const ids = [];
    for (;;) {
      const id = argmax(logits);
      if (this.config.stop.includes(id)) return;
      ids.push(id);
      yield ids;
      if (ids.length === count || cache.length === this.config.context) return;
      logits = this.forward([id], cache, alphas);
    }
  }
}
