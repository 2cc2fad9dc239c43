"use strict";
const list = document.getElementById("rows");
const rows = [...list.children];
const nsd = (row) => Number(row.dataset.nsd);
const score = (row) => (row.dataset.score === "" ? NaN : Number(row.dataset.score));
const byScore = (sign) => (a, b) => {
  const [x, y] = [score(a), score(b)];
  return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || nsd(a) - nsd(b);
};
const orders = { best: byScore(-1), worst: byScore(1), nsd: (a, b) => nsd(a) - nsd(b) };
const buttons = [...document.querySelectorAll("[data-order]")];
for (const button of buttons) {
  button.addEventListener("click", () => {
    list.append(...rows.sort(orders[button.dataset.order]));
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
