"use strict";
(() => {
  const { subjects, variants, lines: kinds, metrics, stimuli, scores, shown, thumbnail, parts, part } = GALLERY;
  const AVERAGE = -1, ROWS = 6;
  const $ = (id) => document.getElementById(id);
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === false || value === undefined) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  };
  const id = (i) => stimuli[i][0];
  const anchor = (i) => `stimulus-${encodeURIComponent(id(i))}`;
  const caption = (i) => stimuli[i][1][0] ?? "no caption";
  const file = (folder, i, suffix) => `images/${encodeURIComponent(folder)}/${String(i).padStart(5, "0")}${suffix && "-" + suffix.replaceAll("/", "-")}.webp`;
  const number = (value, digits) => (value === null || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "−"));
  const people = subjects.map((_, s) => s).filter((s) => subjects[s].person);
  const score = (i, s, v, m) => {
    if (s !== AVERAGE) return scores[s][v][m][i] ?? NaN;
    return people.reduce((sum, p) => sum + (scores[p][v][m][i] ?? NaN), 0) / people.length;
  };

  // what is shown; kept in the address, so that a view can be sent on
  const first = {
    order: "best", metric: metrics[0]?.name ?? "", of: people.length > 1 ? "average" : subjects[0].name,
    variant: variants[0].name, find: "", subjects: subjects.map((s) => s.name).join(),
    pictures: kinds.filter((k) => k.usual).map((k) => k.name).join(), page: "1",
  };
  const view = { ...first };
  const load = () => {
    const hash = decodeURI(location.hash);
    Object.assign(view, first);
    for (const [key, value] of new URLSearchParams(hash.slice(6))) if (key in view) view[key] = value;
  };
  const keep = () => {
    const changed = Object.entries(view).filter(([key, value]) => value !== first[key]);
    const hash = changed.length ? "#view?" + new URLSearchParams(changed) : "#gallery";
    if (changed.length || location.hash.startsWith("#view?")) history.replaceState(null, "", hash);
  };
  const chosen = (key) => new Set(view[key].split(",").filter(Boolean));

  // order and filter
  const place = (list, name) => list.findIndex((item) => item.name === name);
  const values = () => {
    const m = place(metrics, view.metric), v = Math.max(0, place(variants, view.variant));
    const s = view.of === "average" ? AVERAGE : place(subjects, view.of);
    return stimuli.map((_, i) => (m < 0 ? NaN : score(i, s, v, m)));
  };
  const searched = stimuli.map(([name, texts]) => [name.toLowerCase(), texts.join("\n").toLowerCase()]);
  const digits = (word) => /^\d+$/.test(word);
  const arrange = () => {
    // "nsd 764", "NSD-00764" and "nsd00764" ask for a number
    const words = view.find.toLowerCase().replace(/\bnsd[\s#:_-]*(?=\d)/g, "").split(/\s+/).filter(Boolean);
    const found = stimuli.map((_, i) => i).filter((i) => {
      const [name, text] = searched[i];
      return words.every((word) => name.includes(word) || text.includes(word) || (digits(word) && digits(name) && Number(name) === Number(word)));
    });
    const value = values(), lower = metrics[place(metrics, view.metric)]?.lower;
    const key = value.map((x) => (lower ? x : -x));
    if (view.order === "median") {
      const sorted = found.map((i) => value[i]).filter((x) => !Number.isNaN(x)).sort((a, b) => a - b);
      const n = sorted.length, middle = n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : NaN;
      for (const i of found) key[i] = Math.abs(value[i] - middle);
    }
    const sign = view.order === "worst" ? -1 : 1;
    found.sort((a, b) => {
      if (view.order === "stimulus") return a - b;
      return Number.isNaN(key[a]) - Number.isNaN(key[b]) || sign * (key[a] - key[b]) || a - b;
    });
    return { found, value };
  };

  // rows
  let found = [], value = [], columns = [], lines = [];
  const picture = (source, alt) => element("img", { src: source, alt, width: thumbnail, height: thumbnail, loading: "lazy", decoding: "async" });
  const cell = (i, s, line) => {
    const name = subjects[s].label;
    if (!shown[s][i]) return element("div", { class: "cell absent", "data-subject": name }, "not shown");
    if (kinds[place(kinds, line)].absent.includes(subjects[s].name)) return element("div", { class: "cell absent", "data-subject": name }, "no such control");
    const m = place(metrics, view.metric), v = place(variants, line);
    const alt = v < 0 ? `Guess for ${id(i)} from ${name}` : `Reconstruction of ${id(i)} from ${name}, ${line}`;
    const text = v < 0 || m < 0 ? "" : number(score(i, s, v, m), 3);
    return element("button", { type: "button", class: "cell", "data-subject": name, title: alt, onclick: () => details(i, s, line) },
      picture(file(subjects[s].name, i, line), alt), element("span", {}, text));
  };
  const row = (i) => {
    const article = element("article", { id: anchor(i), "data-stimulus": id(i) });
    const x = Number.isNaN(value[i]) ? "" : `${view.metric} ${number(value[i], 3)}`;
    article.append(
      element("h3", {}, element("b", {}, id(i)), " ", element("span", {}, caption(i)), " ", element("small", {}, x)),
      element("button", { type: "button", class: "truth", style: `grid-row: 2 / span ${Math.max(1, lines.length)}`, onclick: () => details(i, null, "") },
        picture(file("shown", i, ""), `Photo shown: ${caption(i)}`), element("span", {}, "shown")),
    );
    for (const line of lines) {
      const [head, ...tail] = line.split("/");
      article.append(element("div", { class: "name" }, head, ...tail.flatMap((text) => ["/", element("wbr"), text])));
      article.append(...columns.map((s) => cell(i, s, line)));
    }
    return article;
  };
  const draw = () => {
    keep();
    const [here, wanted] = [chosen("subjects"), chosen("pictures")];
    columns = subjects.map((_, s) => s).filter((s) => here.has(subjects[s].name));
    lines = kinds.map((k) => k.name).filter((name) => wanted.has(name));
    ({ found, value } = arrange());
    const pages = Math.max(1, Math.ceil(found.length / ROWS)), page = Math.min(pages, Math.max(1, Number(view.page) || 1));
    const start = (page - 1) * ROWS, here_now = found.slice(start, start + ROWS);
    $("grid").style.setProperty("--columns", columns.length);
    $("grid").style.setProperty("--thumbnail", thumbnail + "px");
    $("heads").replaceChildren(element("div", {}, "shown"), element("div"), ...columns.map((s) => element("div", {}, subjects[s].label)));
    $("rows").replaceChildren(...here_now.map(row));
    $("nothing").hidden = found.length > 0;
    $("nothing").textContent = found.length ? "" : `Nothing found for \u201c${view.find}\u201d: it is in no id and no caption. \u201creset\u201d shows all ${stimuli.length} again.`;
    $("count").textContent = `${found.length} of ${stimuli.length} stimuli` + (pages > 1 ? `, ${start + 1} to ${start + here_now.length} here` : "");
    $("below").hidden = pages < 2;
    $("below").querySelector("span").textContent = `page ${page} of ${pages}`;
    for (const button of document.querySelectorAll(".pager button")) {
      const to = page + (button.className === "on" ? 1 : -1);
      Object.assign(button, { hidden: pages < 2, disabled: to < 1 || to > pages, value: String(to) });
    }
    for (const button of $("order").children) button.setAttribute("aria-pressed", String(button.dataset.order === view.order));
    for (const [id, key] of [["subjects", "subjects"], ["variants", "pictures"]]) {
      const on = chosen(key);
      for (const button of $(id).children) button.setAttribute("aria-pressed", String(on.has(button.value)));
    }
    for (const [id, key] of [["metric", "metric"], ["by-subject", "of"], ["by-variant", "variant"]]) $(id).value = view[key];
    if ($("find").value !== view.find) $("find").value = view.find;
  };

  // all scores of one picture, or the photo (no subject) with its captions; the stimulus before and after
  const figure = (source, text) => element("figure", {}, element("img", { src: source, alt: text }), element("figcaption", {}, text));
  const table = (i, s, v) => {
    const body = metrics.map((metric, m) => {
      const x = score(i, s, v, m), all = stimuli.map((_, j) => score(j, s, v, m)).filter((y) => !Number.isNaN(y));
      const better = all.filter((y) => (metric.lower ? y < x : y > x)).length;
      return element("tr", {}, element("th", { scope: "row" }, metric.name), element("td", { class: "number" }, number(x, 4)),
        element("td", { class: "number" }, Number.isNaN(x) ? "" : `${better + 1} of ${all.length}`));
    });
    const head = ["metric", "score", "rank"].map((text, k) => element("th", { scope: "col", class: k ? "number" : false }, text));
    return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  };
  const where = (store, i, rest = "") => element("p", { class: "note" }, "In full size: ",
    element("code", {}, `study["${store}"].to_dataset().swap_dims(stimulus="stimulus_id").image.sel(stimulus_id=${JSON.stringify(id(i))})${rest}`));
  const CHOSEN = {
    all: (n) => `The first of ${n} pictures; scores are over all of them.`,
    first: (n) => `The first of ${n} pictures; the others are not scored.`,
    best: (n) => `One of ${n} pictures: the one whose latent is most like the predicted one.`,
  };
  const picked = (i, s, line) => {
    const v = place(variants, line), { painter, variant, pictures, select } = kinds[place(kinds, line)], of = subjects[s].name;
    const guess = kinds.find((k) => k.painter === painter && k.variant === null);
    const best = select === "best" && variant !== null, several = variant !== null && pictures > 1;
    return [
      element("div", { class: "pair" }, figure(file("shown", i, ""), "shown"), ...(guess ? [figure(file(of, i, guess.name), guess.name)] : []),
        ...(variant === null ? [] : [figure(file(of, i, line), line)])),
      ...(several ? [element("p", {}, CHOSEN[select](pictures))] : []),
      ...(v < 0 ? [element("p", { class: "note" }, "A guess has no scores of its own.")] : [table(i, s, v)]),
      variant === null ? where(`guesses/${painter}/${of}`, i) : where(`reconstructions/${painter}/${of}/${variant}`, i, best ? "" : "[0]"),
      ...(best && several ? [element("p", { class: "note" }, "Which of them: ", element("code", {}, `study["selected/${painter}/${of}"].best`))] : []),
    ];
  };
  let open = null;
  const details = (i, s, line) => {
    const order = found.includes(i) ? found : stimuli.map((_, j) => j);
    const seen = s === null ? order : order.filter((j) => shown[s][j]);
    const at = seen.indexOf(i);
    open = { s, line, before: seen[at - 1], after: seen[at + 1] };
    const step = (name, to, text) => element("button", { type: "button", class: name, disabled: to === undefined, "aria-label": text, title: text, onclick: () => move(name) }, name === "before" ? "‹" : "›");
    const steps = element("div", { class: "steps" }, step("before", open.before, "Previous stimulus"), element("span", {}, `${at + 1} of ${seen.length}`), step("after", open.after, "Next stimulus"),
      element("form", { method: "dialog" }, element("button", { class: "close", "aria-label": "Close" }, "✕")));
    const title = s === null ? `${id(i)}, the photo shown` : `${id(i)}, ${subjects[s].label}, ${line}`;
    $("details").replaceChildren(
      steps, element("h3", { id: "details-title" }, title),
      ...(s === null ? [element("div", { class: "pair" }, figure(file("shown", i, ""), "shown"))] : []),
      element("ul", {}, ...(stimuli[i][1].length ? stimuli[i][1] : ["no caption"]).map((text) => element("li", {}, text))),
      ...(s === null ? [where(parts[part[i]], i)] : picked(i, s, line)),
    );
    if (!$("details").open) $("details").showModal();
  };
  const move = (to) => {
    if (!open || open[to] === undefined) return;
    details(open[to], open.s, open.line);
    ($("details").querySelector(`.${to}:enabled`) ?? $("details").querySelector(".close")).focus();
  };
  $("details").addEventListener("click", (event) => { if (event.target === $("details")) $("details").close(); });
  $("details").addEventListener("keydown", (event) => {
    const to = { ArrowLeft: "before", ArrowRight: "after" }[event.key];
    if (to) { event.preventDefault(); move(to); }
  });
  for (const button of document.querySelectorAll("#examples button")) {
    const { number: i, subject, kind } = button.dataset;
    button.addEventListener("click", () => (kind ? details(Number(i), place(subjects, subject), kind) : details(Number(i), null, "")));
  }

  // controls
  const options = (id, names) => $(id).append(...names.map(([value, text]) => element("option", { value }, text)));
  options("metric", metrics.map((m) => [m.name, m.name]));
  options("by-subject", [...(people.length > 1 ? [["average", "average of subjects"]] : []), ...subjects.map((s) => [s.name, s.label])]);
  options("by-variant", variants.map((v) => [v.name, v.name]));
  const on = (id, event, change) => $(id).addEventListener(event, (e) => { change(e); view.page = "1"; draw(); });
  on("reset", "click", () => { Object.assign(view, first); });
  on("metric", "change", (e) => { view.metric = e.target.value; });
  on("by-subject", "change", (e) => { view.of = e.target.value; });
  on("by-variant", "change", (e) => { view.variant = e.target.value; });
  on("find", "input", (e) => { view.find = e.target.value; });
  on("order", "click", (e) => { view.order = e.target.dataset.order ?? view.order; });
  const chips = (id, key, names) => {
    $(id).append(...names.map(([value, text, title]) => element("button", { type: "button", value, title }, text)));
    on(id, "click", (e) => {
      if (!e.target.value) return;
      const now = chosen(key);
      if (!now.delete(e.target.value)) now.add(e.target.value);
      view[key] = [...now].join();
    });
  };
  chips("subjects", "subjects", subjects.map((s) => [s.name, s.label]));
  chips("variants", "pictures", kinds.map((k) => [k.name, k.name, k.label]));
  $("controls").addEventListener("submit", (e) => e.preventDefault());
  for (const button of document.querySelectorAll(".pager button")) {
    button.addEventListener("click", () => { view.page = button.value; draw(); $("grid").scrollIntoView(); });
  }
  addEventListener("hashchange", () => { if (location.hash.startsWith("#view?")) { load(); draw(); } });
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
  if (location.hash.startsWith("#view?")) load();
  draw();
  if (location.hash.startsWith("#view?")) $("gallery").scrollIntoView();
})();
