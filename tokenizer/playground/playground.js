// Byte-level and SentencePiece BPE as the tokenizers library runs them; `data` is what playground.py makes.
"use strict";

const SPACE = "\u2581";
// The library's \s is White_Space; JavaScript's has U+FEFF and lacks U+0085.
const unicode = (pattern) => pattern
  .replace(/\(\?i:([^)]*)\)/g, (_, body) => "(?:" + body.replace(/[a-z]/g, (c) => "[" + c + c.toUpperCase() + "]") + ")")
  .replace(/\\s/g, "\\p{White_Space}").replace(/\\S/g, "\\P{White_Space}");
const BYTE_CHARS = (() => {
  const shown = (b) => (b > 32 && b < 127) || (b > 160 && b < 173) || b > 173;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(shown(b) ? b : next++));
})();
const utf8 = (text) => new TextEncoder().encode(text);
const byteName = (b) => "<0x" + b.toString(16).toUpperCase().padStart(2, "0") + ">";

class Heap {
  constructor() { this.items = []; }
  static less(a, b) { return a.rank !== b.rank ? a.rank < b.rank : a.at < b.at; }
  push(item) {
    const list = this.items;
    let n = list.push(item) - 1;
    while (n > 0 && Heap.less(item, list[(n - 1) >> 1])) { list[n] = list[(n - 1) >> 1]; n = (n - 1) >> 1; }
    list[n] = item;
  }
  pop() {
    const list = this.items, top = list[0], last = list.pop();
    if (!list.length) return top;
    let n = 0;
    for (;;) {
      let child = 2 * n + 1;
      if (child >= list.length) break;
      if (child + 1 < list.length && Heap.less(list[child + 1], list[child])) child++;
      if (!Heap.less(list[child], last)) break;
      list[n] = list[child]; n = child;
    }
    list[n] = last;
    return top;
  }
}

class Tokenizer {
  constructor(data) {
    this.data = data;
    this.surfaces = data.vocabulary;
    this.ids = new Map();
    data.vocabulary.forEach((surface, id) => { if (surface !== null) this.ids.set(surface, id); });
    this.ranks = new Map();
    const size = data.vocabulary.length;
    for (let n = 0; n < data.merges.length; n += 2) {
      const [left, right] = [data.merges[n], data.merges[n + 1]];
      const made = this.ids.get(this.surfaces[left] + this.surfaces[right]);
      const key = left * size + right;
      if (!this.ranks.has(key)) this.ranks.set(key, { rank: n / 2, id: made });
    }
    this.steps = data.pre_tokenizer.map((step) => step.kind === "split"
      ? { ...step, pattern: new RegExp(unicode(step.pattern), "gu") } : step);
    const finder = (tokens) => tokens.length === 0 ? null
      : new RegExp(tokens.slice().sort((a, b) => b.length - a.length)
        .map((t) => t.replace(/[.*+?^$\x7b}()|[\]\\\/]/g, "\\$&")).join("|"), "gu");
    this.raw = finder(data.added.raw);
    this.normalised = finder(data.added.normalised);
  }

  encode(text) {
    const found = [];
    let start = true;
    for (const [part, isToken] of cut(text, this.raw)) {
      if (isToken) { found.push(this.ids.get(part)); start = false; continue; }
      for (const [piece, token] of cut(this.normalise(part), this.normalised)) {
        if (token) { found.push(this.ids.get(piece)); } else {
          for (const word of this.words(piece, start)) this.merge(word, found);
        }
        start = false;
      }
    }
    return found;
  }

  normalise(text) {
    for (const step of this.data.normalizer) {
      if (step.kind === "form") text = text.normalize(step.form);
      else if (step.kind === "prepend") text = text === "" ? "" : step.text + text;
      else if (step.kind === "replace") text = text.split(step.from).join(step.to);
      else if (step.kind === "strip") text = text.replace(/^ +| +$/g, "");
      else text = text.replace(/ {2,}/g, " ");
    }
    return text;
  }

  words(text, start) {
    let words = text === "" ? [] : [text];
    for (const step of this.steps) {
      if (step.kind === "split") words = words.flatMap((word) => isolated(word, step.pattern));
      else if (step.kind === "bytes") words = words.map((word) => Array.from(utf8(word), (b) => BYTE_CHARS[b]).join(""));
      else words = words.flatMap((word) => metaspace(word, step, start));
    }
    return words;
  }

  merge(word, found) {
    const whole = this.data.ignore_merges ? this.ids.get(word) : undefined;
    if (whole !== undefined) { found.push(whole); return; }
    const ids = this.letters(word), size = this.surfaces.length;
    const next = ids.map((_, n) => n + 1), before = ids.map((_, n) => n - 1);
    const heap = new Heap();
    const offer = (at) => {
      if (at < 0 || next[at] >= ids.length) return;
      const merge = this.ranks.get(ids[at] * size + ids[next[at]]);
      if (merge !== undefined) heap.push({ at, rank: merge.rank, id: merge.id });
    };
    for (let at = 0; at + 1 < ids.length; at++) offer(at);
    while (heap.items.length) {
      const top = heap.pop(), at = top.at, right = next[at];
      if (ids[at] === null || right >= ids.length) continue;
      const merge = this.ranks.get(ids[at] * size + ids[right]);
      if (merge === undefined || merge.id !== top.id) continue;
      ids[at] = top.id;
      next[at] = next[right];
      if (next[at] < ids.length) before[next[at]] = at;
      ids[right] = null;
      offer(before[at]);
      offer(at);
    }
    for (const id of ids) if (id !== null) found.push(id);
  }

  letters(word) {
    const ids = [];
    let unknown = false;
    for (const character of word) {
      const id = this.ids.get(character);
      if (id !== undefined) { ids.push(id); unknown = false; continue; }
      const bytes = this.data.byte_fallback ? Array.from(utf8(character), (b) => this.ids.get(byteName(b))) : [undefined];
      if (!bytes.includes(undefined)) { ids.push(...bytes); unknown = false; continue; }
      if (this.data.unknown !== null && !(unknown && this.data.fuse_unknown)) ids.push(this.data.unknown);
      unknown = true;
    }
    return ids;
  }

  // How a token is shown: its text, or its bytes where it is a part of a character.
  shown(id) {
    const surface = this.surfaces[id];
    if (!this.data.byte_level) return surface.replaceAll(SPACE, " ");
    if (this.data.added.raw.includes(surface) || this.data.added.normalised.includes(surface)) return surface;
    const bytes = Uint8Array.from(surface, (c) => BYTE_CHARS.indexOf(c));
    try { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes); } catch {
      return Array.from(bytes, byteName).join("");
    }
  }
}

function cut(text, pattern) {
  if (pattern === null) return text === "" ? [] : [[text, false]];
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > at) parts.push([text.slice(at, match.index), false]);
    parts.push([match[0], true]);
    at = match.index + match[0].length;
  }
  if (at < text.length) parts.push([text.slice(at), false]);
  return parts;
}

const isolated = (word, pattern) => cut(word, pattern).map(([part]) => part);

function metaspace(word, step, start) {
  let text = word.replaceAll(" ", SPACE);
  const wanted = step.prepend === "always" || (step.prepend === "first" && start);
  if (wanted && !text.startsWith(SPACE)) text = SPACE + text;
  if (!step.split) return [text];
  return text.split(/(?=\u2581)/u).filter((part) => part !== "");
}

function table(root, tokenizers, text) {
  const element = (name, content, title) => {
    const made = document.createElement(name);
    made.textContent = content;
    if (title) made.title = title;
    return made;
  };
  const characters = Math.max(1, Array.from(text).length);
  root.replaceChildren();
  let reference = null;
  for (const [name, tokenizer] of tokenizers) {
    const ids = tokenizer.encode(text);
    if (reference === null) reference = ids.length;
    const figures = ids.length.toLocaleString("en") + " tokens, " + (ids.length / characters).toFixed(3) + " a character, "
      + (reference ? (ids.length / reference).toFixed(3) : "1.000") + " of the first";
    const head = element("h3", name + " ");
    head.append(element("small", figures));
    const pieces = element("p", "");
    pieces.className = "pieces-shown";
    ids.forEach((id, n) => {
      const piece = element("span", tokenizer.shown(id), "id " + id + ": " + tokenizer.surfaces[id]);
      piece.className = "piece tone-" + (n % 4);
      pieces.append(piece);
    });
    root.append(head, pieces);
  }
}

function start() {
  const data = JSON.parse(document.getElementById("tokenizers").textContent);
  const tokenizers = data.tokenizers.map((item) => [item.name, new Tokenizer(item)]);
  const box = document.getElementById("text"), root = document.getElementById("cut");
  const draw = () => table(root, tokenizers, box.value);
  box.addEventListener("input", draw);
  for (const button of document.querySelectorAll("button[data-sample]")) {
    button.addEventListener("click", () => { box.value = data.samples[button.dataset.sample]; draw(); });
  }
  draw();
}

if (typeof module !== "undefined") module.exports = { Tokenizer };
else start();
