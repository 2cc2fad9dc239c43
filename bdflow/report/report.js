"use strict";
(() => {
  const { subjects, variants, lines: kinds, metrics, stimuli, scores, shown, thumbnail } = GALLERY;
  const AVERAGE = -1, STEP = 12;
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
  const file = (folder, i, suffix) => `images/${encodeURIComponent(folder)}/${String(i).padStart(5, "0")}${suffix && "-" + suffix.replace("/", "-")}.webp`;
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
    pictures: kinds.filter((k) => k.usual).map((k) => k.name).join(),
  };
  const view = { ...first };
  const load = () => {
    const hash = decodeURI(location.hash);
    if (!hash.startsWith("#view?")) return;
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
  const arrange = () => {
    const words = view.find.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = view.find.trim().replace(/^nsd\s*/i, "");
    const number = /^\d+$/.test(asked) ? Number(asked) : null;
    const found = stimuli.map((_, i) => i).filter((i) => {
      const text = stimuli[i][1].join("\n").toLowerCase();
      const name = id(i).toLowerCase(), same = number !== null && /^\d+$/.test(name) && Number(name) === number;
      return same || words.every((word) => name.includes(word) || text.includes(word));
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
  let found = [], value = [], done = 0, columns = [], lines = [];
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
      element("div", { class: "truth", style: `grid-row: 2 / span ${Math.max(1, lines.length)}` }, picture(file("shown", i, ""), `Photo shown: ${caption(i)}`), element("span", {}, "shown")),
    );
    for (const line of lines) {
      const [head, ...tail] = line.split("/");
      article.append(element("div", { class: "name" }, head, ...tail.flatMap((text) => ["/", element("wbr"), text])));
      article.append(...columns.map((s) => cell(i, s, line)));
    }
    return article;
  };
  const more = () => {
    const stop = Math.min(found.length, done + STEP);
    const next = document.createDocumentFragment();
    for (; done < stop; done++) next.append(row(found[done]));
    $("rows").append(next);
  };
  const near = () => $("more").getBoundingClientRect().top < innerHeight + 800;
  const fill = () => { while (done < found.length && near()) more(); };

  const draw = () => {
    keep();
    const [here, wanted] = [chosen("subjects"), chosen("pictures")];
    columns = subjects.map((_, s) => s).filter((s) => here.has(subjects[s].name));
    lines = kinds.map((k) => k.name).filter((name) => wanted.has(name));
    ({ found, value } = arrange());
    done = 0;
    $("grid").style.setProperty("--columns", columns.length);
    $("grid").style.setProperty("--thumbnail", thumbnail + "px");
    $("heads").replaceChildren(element("div", {}, "shown"), element("div"), ...columns.map((s) => element("div", {}, subjects[s].label)));
    $("rows").replaceChildren();
    more();
    fill();
    $("count").textContent = `${found.length} of ${stimuli.length} stimuli`;
    for (const button of $("order").children) button.setAttribute("aria-pressed", String(button.dataset.order === view.order));
    for (const [id, key] of [["subjects", "subjects"], ["variants", "pictures"]]) {
      const on = chosen(key);
      for (const button of $(id).children) button.setAttribute("aria-pressed", String(on.has(button.value)));
    }
    for (const [id, key] of [["metric", "metric"], ["by-subject", "of"], ["by-variant", "variant"]]) $(id).value = view[key];
    if ($("find").value !== view.find) $("find").value = view.find;
  };

  // all scores of one picture
  const details = (i, s, line) => {
    const v = place(variants, line);
    const figure = (source, text) => element("figure", {}, element("img", { src: source, alt: text }), element("figcaption", {}, text));
    const body = v < 0 ? [] : metrics.map((metric, m) => {
      const x = score(i, s, v, m), all = stimuli.map((_, j) => score(j, s, v, m)).filter((y) => !Number.isNaN(y));
      const better = all.filter((y) => (metric.lower ? y < x : y > x)).length;
      return element("tr", {}, element("th", { scope: "row" }, metric.name), element("td", { class: "number" }, number(x, 4)),
        element("td", { class: "number" }, Number.isNaN(x) ? "" : `${better + 1} of ${all.length}`));
    });
    const head = element("tr", {}, ...["metric", "score", "rank"].map((text, k) => element("th", { scope: "col", class: k ? "number" : false }, text)));
    const { painter, variant } = kinds[place(kinds, line)], guess = kinds.find((k) => k.painter === painter && k.variant === null);
    const store = variant === null ? `guesses/${painter}/${subjects[s].name}` : `reconstructions/${painter}/${subjects[s].name}/${variant}`;
    $("details").replaceChildren(
      element("form", { method: "dialog" }, element("button", { "aria-label": "Close" }, "✕")),
      element("h3", {}, `${id(i)}, ${subjects[s].label}, ${line}`),
      element("div", { class: "pair" }, figure(file("shown", i, ""), "shown"), ...(guess ? [figure(file(subjects[s].name, i, guess.name), guess.name)] : []),
        ...(v < 0 ? [] : [figure(file(subjects[s].name, i, line), line)])),
      element("ul", {}, ...stimuli[i][1].map((text) => element("li", {}, text))),
      ...(v < 0 ? [] : [element("table", {}, element("thead", {}, head), element("tbody", {}, ...body))]),
      element("p", { class: "note" }, "In full size: ", element("code", {}, `study["${store}"].to_dataset().swap_dims(stimulus="stimulus_id").image.sel(stimulus_id=${JSON.stringify(id(i))})`)),
    );
    $("details").showModal();
  };
  $("details").addEventListener("click", (event) => { if (event.target === $("details")) $("details").close(); });

  // controls
  const options = (id, names) => $(id).append(...names.map(([value, text]) => element("option", { value }, text)));
  options("metric", metrics.map((m) => [m.name, m.name]));
  options("by-subject", [...(people.length > 1 ? [["average", "average of subjects"]] : []), ...subjects.map((s) => [s.name, s.label])]);
  options("by-variant", variants.map((v) => [v.name, v.name]));
  const on = (id, event, change) => $(id).addEventListener(event, (e) => { change(e); draw(); });
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
  addEventListener("hashchange", () => { load(); draw(); });
  new IntersectionObserver(fill, { rootMargin: "800px" }).observe($("more"));
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
  load();
  draw();
})();
