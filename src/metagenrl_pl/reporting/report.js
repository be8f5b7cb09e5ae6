"use strict";
// Switches of methods, tabs of the forest plot, and values under the pointer. The page is complete without them.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function show(key, isOn) {
  all(`[data-series="${key}"]`).forEach((one) => {
    if (one.tagName === "BUTTON") one.setAttribute("aria-pressed", isOn);
    else one.style.display = isOn ? "" : "none";
  });
  all("figure").forEach((figure) => {
    const lines = all(".line", figure);
    figure.hidden = lines.length > 0 && lines.every((line) => line.style.display === "none");
  });
}
all(".chip").forEach((chip) => {
  show(chip.dataset.series, chip.getAttribute("aria-pressed") === "true");
  chip.addEventListener("click", () => show(chip.dataset.series, chip.getAttribute("aria-pressed") !== "true"));
  for (const [event, isHot] of [["pointerenter", true], ["pointerleave", false]])
    chip.addEventListener(event, () => all(`.line[data-series="${chip.dataset.series}"]`).forEach((line) => line.classList.toggle("hot", isHot)));
});

all(".tabs button").forEach((tab) =>
  tab.addEventListener("click", () => {
    const card = tab.closest(".card");
    all(".tabs button", card).forEach((other) => other.setAttribute("aria-pressed", other === tab));
    all(".forest", card).forEach((forest) => (forest.hidden = forest.dataset.forest !== tab.dataset.forest));
  })
);

const tip = document.getElementById("tip");
const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) >= 1000 ? 21 : 3, maximumFractionDigits: 3 });

function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
}

function describe(panel, x) {
  const rows = all("[data-values]", panel)
    .filter((line) => line.style.display !== "none")
    .map((line) => ({ line, points: JSON.parse(line.dataset.values) }))
    .filter(({ points }) => points.length)
    .map((row) => ({ ...row, point: nearest(row.points, x) }));
  if (!rows.length) return null;
  const curves = rows.filter(({ line }) => !line.classList.contains("level"));
  const at = nearest((curves.length ? curves : rows).map(({ point }) => point), x)[0];
  const near = rows.map(({ line, points }) => ({ line, point: nearest(points, at) })).sort((a, b) => b.point[1] - a.point[1]);
  return { at, near };
}

function fill(at, near) {
  tip.replaceChildren();
  tip.append(number(at));
  for (const { line, point } of near) {
    const row = document.createElement("div");
    row.setAttribute("style", line.getAttribute("style"));
    const interval = point.length > 2 ? ` [${number(point[2])}, ${number(point[3])}]` : "";
    row.append(document.createElement("i"), `${line.dataset.name} ${number(point[1])}${interval}`);
    tip.append(row);
  }
}

all("svg.panel").forEach((panel) => {
  const [low, high, left, right, top, bottom] = JSON.parse(panel.dataset.x);
  const cursor = panel.querySelector(".cursor");
  panel.addEventListener("pointermove", (event) => {
    const box = panel.getBoundingClientRect();
    const scale = panel.viewBox.baseVal.width / box.width;
    const x = low + (((event.clientX - box.left) * scale - left) / (right - left)) * (high - low);
    const found = describe(panel, x);
    if (!found) return;
    fill(found.at, found.near);
    cursor.setAttribute("d", `M${left + ((found.at - low) / (high - low)) * (right - left)} ${top}V${bottom}`);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const beside = event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
  });
  panel.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("d", "");
  });
});
