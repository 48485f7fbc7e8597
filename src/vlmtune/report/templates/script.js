"use strict";
(() => {
  const root = document.documentElement;
  const toggle = document.querySelector(".theme");
  // Storage may be forbidden for files opened from a disk: the theme then lasts for the page only.
  const store = (value) => { try { localStorage.setItem("vlmtune-theme", value); } catch { /* not kept */ } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const name = () => {
    const other = current() === "dark" ? "light" : "dark";
    toggle.textContent = other === "dark" ? "Dark" : "Light";
    toggle.setAttribute("aria-label", `Switch to the ${other} theme`);
  };
  name();
  system.addEventListener("change", name);
  toggle.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    store(root.dataset.theme);
    name();
  });

  // Sorting: a cell's data-v is its value; numbers sort as numbers, cells without one stay at the end.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const isNumber = head.classList.contains("n");
      const first = isNumber ? "descending" : "ascending";
      const other = isNumber ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.v ?? row.cells[column].textContent, row]);
      keyed.sort(([a], [b]) => {
        if (!isNumber) return sign * a.localeCompare(b, undefined, { numeric: true });
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (Number(a) - Number(b));
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    }));
  }

  const gallery = document.querySelector(".gallery");
  const cards = gallery ? [...gallery.children] : [];
  const filters = document.querySelector(".filters");
  const more = document.querySelector(".more");
  const PAGE = 60;
  let shown = PAGE;
  const update = () => {
    // A select filters by the data of its name: kind by data-kind, answerType by data-answer-type; empty lets all pass.
    const chosen = [...filters.querySelectorAll("select")].filter((select) => select.value);
    const words = filters.elements.search.value.trim().toLowerCase();
    let matching = 0;
    for (const card of cards) {
      const fits = chosen.every((select) => card.dataset[select.name] === select.value)
        && (!words || card.dataset.text.toLowerCase().includes(words));
      matching += fits;
      card.hidden = !fits || matching > shown;
    }
    filters.querySelector("output").textContent = `${matching} ${matching === 1 ? "image" : "images"}`;
    more.hidden = matching <= shown;
    more.textContent = `Show ${Math.min(PAGE * 4, matching - shown)} more`;
  };
  if (filters && gallery) {
    const restart = () => { shown = PAGE; update(); };
    filters.addEventListener("input", restart);
    filters.addEventListener("reset", () => setTimeout(restart));
    filters.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => { shown += PAGE * 4; update(); });
    update();
  }

  // The heat map says under the pointer what a cell is; a click shows its images.
  const readout = document.querySelector(".readout");
  const heatmap = readout?.parentElement.querySelector("svg");
  if (heatmap) {
    const idle = readout.textContent;
    heatmap.addEventListener("pointerover", (event) => {
      readout.textContent = event.target.closest("rect.cell")?.querySelector("title").textContent ?? idle;
    });
    heatmap.addEventListener("pointerleave", () => { readout.textContent = idle; });
    heatmap.addEventListener("click", (event) => {
      const cell = event.target.closest("rect.cell");
      if (!cell || !filters || !gallery) return;
      filters.elements.truth.value = cell.dataset.truth;
      filters.elements.guess.value = cell.dataset.guess;
      filters.elements.kind.value = "";
      filters.elements.search.value = "";
      shown = PAGE;
      update();
      document.querySelector("#images").scrollIntoView();
    });
  }
})();
