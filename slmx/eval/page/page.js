// The explorer of questions, and the switch between light and dark. Everything else on the page works without script.
// Text of models and datasets only ever becomes text nodes: there is no innerHTML here.
"use strict";
(() => {
  const PAGE = 20;
  const byId = (id) => document.getElementById(id);

  // ------------------------------------------------------------------------------------------------ light and dark
  const root = document.documentElement;
  const remembered = (() => { try { return localStorage.getItem("slmx-theme"); } catch { return null; } })();
  if (remembered === "dark" || remembered === "light") root.dataset.theme = remembered;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = byId("theme");
  const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("slmx-theme", root.dataset.theme); } catch { /* a page from a file may have no storage */ }
    nameTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  // ------------------------------------------------------------------------------------------------ the stored data
  async function unpack(id) {
    const raw = atob(byId(id).textContent);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }
  const blocks = new Map();
  function block(number) { // passages are unpacked when they are first looked at
    if (!blocks.has(number)) blocks.set(number, unpack("passages-" + number));
    return blocks.get(number);
  }
  async function passage(place) {
    const starts = data.blocks;
    let number = starts.length - 1;
    while (starts[number] > place) number--;
    return (await block(number))[place - starts[number]];
  }

  let data = null;
  let haystacks = null;
  const state = { base: 0, other: 0, outcome: "all", find: "", group: "", page: 0, open: new Set() };

  // ---------------------------------------------------------------------------------------------------- small tools
  function make(tag, kind, ...children) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    made.append(...children);
    return made;
  }
  function foreign(tag, kind, ...children) { // text from outside keeps its direction to itself
    const made = make(tag, kind, ...children);
    made.dir = "auto";
    return made;
  }

  // Words as the metrics see them: lower-case, without punctuation; articles are no words.
  const PUNCTUATION = /[!-/:-@[-`{-~]/g;
  const ALL_PUNCTUATION = /[\p{P}!-/:-@[-`{-~\u0301]/gu;
  const ARTICLES = new Set(["a", "an", "the", ""]);
  const CYRILLIC = /[\u0400-\u052f]/;
  function normal(word, russian) {
    word = word.toLowerCase();
    return russian ? word.normalize("NFC").replace(ALL_PUNCTUATION, "").replace(/ё/g, "е") : word.replace(PUNCTUATION, "");
  }
  function tokens(text, russian) { // [start, end, normal word] of every word between white space
    return Array.from(text.matchAll(/\S+/g), (m) => [m.index, m.index + m[0].length, normal(m[0], russian)])
      .filter((token) => !ARTICLES.has(token[2]));
  }
  function wordsOf(text, russian) {
    const kept = tokens(text, russian).map((token) => token[2]);
    return kept.length ? kept : text.toLowerCase().split(/\s+/).filter(Boolean);
  }
  // Where one of the golds stands as a run of words: [start, end] spans; and the single words that golds hold.
  function runsIn(found, golds) {
    const spans = [];
    for (const gold of golds) {
      for (let i = 0; gold.length && i + gold.length <= found.length; i++) {
        if (gold.every((word, j) => found[i + j][2] === word)) spans.push([found[i][0], found[i + gold.length - 1][1]]);
      }
    }
    return spans;
  }
  function marked(text, question, golds) {
    const russian = CYRILLIC.test(question);
    const found = tokens(text, russian);
    const wanted = golds.map((gold) => wordsOf(gold, russian));
    const runs = runsIn(found, wanted);
    const single = new Set(wanted.flat());
    const inRun = (token) => runs.some(([start, end]) => start <= token[0] && token[1] <= end);
    const spans = runs.map(([start, end]) => [start, end, "gold"]);
    for (const token of found) if (single.has(token[2]) && !inRun(token)) spans.push([token[0], token[1], "part"]);
    spans.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    const made = document.createDocumentFragment();
    let at = 0;
    for (const [start, end, kind] of spans) {
      if (start < at) continue;
      made.append(text.slice(at, start), make("mark", kind, text.slice(start, end)));
      at = end;
    }
    made.append(text.slice(at));
    return { made, holds: runs.length > 0 };
  }
  // The share of an answer's words that stand in a text, each as often as both hold it.
  function covered(answer, text, russian) {
    const left = new Map();
    for (const word of wordsOf(text, russian)) left.set(word, (left.get(word) || 0) + 1);
    const wanted = wordsOf(answer, russian);
    let shared = 0;
    for (const word of wanted) if (left.get(word) > 0) { shared++; left.set(word, left.get(word) - 1); }
    return wanted.length ? shared / wanted.length : 0;
  }

  // ---------------------------------------------------------------------------------------------- which are shown
  function outcome(place) {
    const a = data.right[state.base][place], b = data.right[state.other][place];
    if (a === "-" || b === "-") return "";
    return a === "1" ? (b === "1" ? "both-right" : "hurt") : (b === "1" ? "helped" : "both-wrong");
  }
  const ignored = (place) => data.same[state.base][place] === data.same[state.other][place];
  function haystack(place) {
    return [data.questions[place], data.ids[place], ...data.golds[place], ...data.answers.map((run) => run[place])].join("\n").toLowerCase();
  }
  function fits(place, words) {
    if (state.group && data.group_of[place] !== state.group) return false;
    return words.every((word) => haystacks[place].includes(word));
  }
  function select() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystacks) haystacks = data.ids.map((_, place) => haystack(place));
    const counts = { all: 0, helped: 0, hurt: 0, "both-right": 0, "both-wrong": 0, ignored: 0 };
    const shown = [];
    for (let place = 0; place < data.ids.length; place++) {
      if (!fits(place, words)) continue;
      const kind = outcome(place), same = ignored(place);
      counts.all++;
      if (kind) counts[kind]++;
      if (same) counts.ignored++;
      if (state.outcome === "all" || state.outcome === kind || (state.outcome === "ignored" && same)) shown.push(place);
    }
    return { shown, counts };
  }

  // ------------------------------------------------------------------------------------------------------- drawing
  function badge(run, place) {
    const right = data.right[run][place];
    const words = right === "1" ? "right" : right === "0" ? "wrong" : "not judged";
    const made = make("span", "badge " + (right === "1" ? "yes" : "no"), data.runs[run].key + (right === "1" ? " ✓" : " ✗"));
    made.title = data.runs[run].name + ": " + words;
    made.setAttribute("aria-label", data.runs[run].key + " " + words);
    return made;
  }
  async function card(run, place) {
    const question = data.questions[place], golds = data.golds[place], answer = data.answers[run][place];
    const right = data.right[run][place], recall = data.recall[run][place];
    const head = make("h4", "", data.runs[run].key + " · " + data.runs[run].name);
    const verdict = make("p", "grade", make("b", right === "1" ? "yes" : "no", right === "1" ? "right" : right === "0" ? "wrong" : "not judged"));
    if (recall >= 0) verdict.append(" · token recall " + recall);
    const said = foreign("p", "answer", answer.trim() ? marked(answer, question, golds).made : make("i", "", "(empty answer)"));
    const made = make("article", "card", head, verdict, said);
    const places = data.passages[run][place];
    if (places.length) made.append(...await passages(places, question, golds, answer));
    return made;
  }
  async function passages(places, question, golds, answer) {
    const texts = await Promise.all(places.map(passage));
    const russian = CYRILLIC.test(question);
    const shares = texts.map((text) => (answer.trim() ? covered(answer, text, russian) : 0));
    const best = Math.max(...shares);
    const items = [];
    let holding = 0;
    for (const [rank, text] of texts.entries()) {
      const { made, holds } = marked(text, question, golds);
      holding += holds;
      const used = best >= 0.5 && shares[rank] === best; // the passage that the answer's words come from
      const head = make("p", "rank", "passage " + (rank + 1));
      if (used) head.append(" ", make("span", "badge used", "used: " + Math.round(100 * best) + " % of the answer's words"));
      if (holds) head.append(" ", make("span", "badge yes", "holds the gold answer"));
      items.push({ used, made: make("div", used ? "passage is-used" : "passage", head, foreign("p", "", made)) });
    }
    const rest = items.filter((item) => !item.used), used = items.filter((item) => item.used);
    const words = places.length + (places.length === 1 ? " passage" : " passages") + ", " + holding + " with the gold answer";
    const made = [make("p", "context", words), ...used.map((item) => item.made)];
    if (rest.length) {
      const more = make("details", "", make("summary", "", used.length ? "the other " + rest.length : "show " + rest.length), ...rest.map((item) => item.made));
      made.push(more);
    }
    return made;
  }
  async function unfold(item, place) {
    const order = [...new Set([state.base, state.other, ...data.runs.keys()])];
    const golds = make("p", "golds", "gold: ");
    data.golds[place].forEach((gold, i) => golds.append(i ? " or " : "", foreign("mark", "gold", gold)));
    const note = make("p", "id", "id " + data.ids[place] + (data.group_of[place] ? " · " + data.group_of[place] : ""));
    const cards = make("div", "cards", ...await Promise.all(order.map((run) => card(run, place))));
    const old = item.querySelector(".inside");
    if (old) old.remove();
    item.append(make("div", "inside", golds, cards, note));
  }
  function row(place) {
    const kind = outcome(place);
    const button = make("button", "question", foreign("span", "asked", data.questions[place]));
    button.type = "button";
    const badges = make("span", "badges", ...data.runs.map((_, run) => badge(run, place)));
    if (kind && state.base !== state.other) badges.prepend(make("span", "outcome o-" + kind, kind.replace("-", " ")));
    button.append(badges);
    const item = make("li", "", button);
    const show = (open) => {
      button.setAttribute("aria-expanded", String(open));
      if (open) { state.open.add(place); return unfold(item, place); }
      state.open.delete(place);
      item.querySelector(".inside")?.remove();
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
    show(state.open.has(place));
    return item;
  }
  function draw() {
    const { shown, counts } = select();
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const from = state.page * PAGE, now = shown.slice(from, from + PAGE);
    byId("questions").replaceChildren(...now.map(row));
    byId("questions").start = from + 1;
    byId("shown").textContent = now.length
      ? `Questions ${from + 1}–${from + now.length} of ${shown.length}` + (shown.length < data.ids.length ? ` (${data.ids.length} in all)` : "")
      : "No question fits. Press Escape in the search field, or choose “all”.";
    for (const input of document.querySelectorAll("input[name=outcome]")) {
      input.checked = input.value === state.outcome;
      byId("count-" + input.value).textContent = counts[input.value];
    }
    for (const [id, off] of [["first", !state.page], ["previous", !state.page], ["next", state.page >= pages - 1], ["last", state.page >= pages - 1]]) byId(id).disabled = off;
    byId("of-pages").textContent = `page ${state.page + 1} of ${pages}`;
  }
  function changed(what) {
    Object.assign(state, { page: 0 }, what);
    draw();
  }

  // ------------------------------------------------------------------------------------------- hands on the controls
  function linked() { // #show-BASE-OTHER-OUTCOME, from the numbers in the tables
    const asked = /^#show-(\d+)-(\d+)-([a-z-]+)$/.exec(location.hash);
    if (!asked || !data.runs[asked[1]] || !data.runs[asked[2]] || !byId("count-" + asked[3])) return;
    byId("find").value = byId("group").value = "";
    byId("base").value = asked[1];
    byId("other").value = asked[2];
    changed({ base: +asked[1], other: +asked[2], outcome: asked[3], find: "", group: "" });
    byId("explorer").scrollIntoView();
    byId("questions").querySelector("button")?.focus({ preventScroll: true });
  }
  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const buttons = [...byId("questions").querySelectorAll("button.question")];
    const at = buttons.indexOf(document.activeElement);
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "Escape" && document.activeElement === byId("find")) { byId("find").value = ""; changed({ find: "" }); return; }
    if (event.key === "/" && !typing) { event.preventDefault(); byId("find").focus(); return; }
    if (typing || (at < 0 && !byId("explorer").contains(document.activeElement))) return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step && at >= 0) { event.preventDefault(); buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)].focus(); }
    const turn = { n: 1, p: -1 }[event.key];
    if (turn) { state.page += turn; draw(); byId("questions").querySelector("button")?.focus(); }
  }
  function options(select, words, chosen) {
    select.replaceChildren(...words.map(([value, text]) => new Option(text, value, false, value === chosen)));
  }
  async function start() {
    const explorer = byId("explorer-data");
    if (!explorer) return;
    if (typeof DecompressionStream === "undefined") {
      byId("no-explorer").textContent = "This browser cannot unpack the questions (it lacks DecompressionStream, which Chrome, Firefox and Safari have had since 2023). The tables above need nothing of it.";
      return;
    }
    data = await unpack("explorer-data");
    state.base = data.pair[0];
    state.other = data.pair[1];
    const runs = data.runs.map((run, i) => [String(i), run.key + " · " + run.name]);
    options(byId("base"), runs, String(state.base));
    options(byId("other"), runs, String(state.other));
    options(byId("group"), [["", "all"], ...data.groups.map((name) => [name, name])], "");
    byId("group-field").hidden = data.groups.length < 2;
    byId("base").addEventListener("change", (e) => changed({ base: +e.target.value }));
    byId("other").addEventListener("change", (e) => changed({ other: +e.target.value }));
    byId("group").addEventListener("change", (e) => changed({ group: e.target.value }));
    byId("find").addEventListener("input", (e) => changed({ find: e.target.value }));
    byId("filters").addEventListener("submit", (e) => e.preventDefault());
    for (const input of document.querySelectorAll("input[name=outcome]")) input.addEventListener("change", () => changed({ outcome: input.value }));
    const turns = { first: () => 0, previous: () => state.page - 1, next: () => state.page + 1, last: () => Infinity };
    for (const [id, page] of Object.entries(turns)) byId(id).addEventListener("click", () => { state.page = page(); draw(); byId("shown").scrollIntoView({ block: "nearest" }); });
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", linked);
    byId("no-explorer").hidden = true;
    byId("filters").hidden = byId("browse").hidden = false;
    draw();
    linked();
    root.dataset.ready = "yes";
  }
  start().catch((problem) => { byId("no-explorer").textContent = "The questions could not be unpacked: " + problem.message; throw problem; });
})();
