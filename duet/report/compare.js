"use strict";
(() => {
  // Numbers sort as numbers, and what has no value comes last in either direction.
  const compare = (first, second, sign) => {
    if (first === "" || second === "") return (first === "") - (second === "");
    const difference = Number(first) - Number(second);
    return sign * (Number.isNaN(difference) ? first.localeCompare(second) : difference);
  };

  const sortBy = (table, head, column) => {
    const before = head.getAttribute("aria-sort");
    const other = before === "ascending" ? "descending" : "ascending";
    const direction = before === "none" ? head.dataset.first : other;
    for (const item of table.tHead.rows[0].cells) {
      if (item.hasAttribute("aria-sort")) item.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.value;
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b), sign)));
    table.classList.add("sorted");
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = head.querySelector("button");
      if (button) button.addEventListener("click", () => sortBy(table, head, column));
    });
  }

  for (const legend of document.querySelectorAll(".legend")) {
    const scope = legend.closest("section");
    const buttons = [...legend.querySelectorAll("button")];
    const show = () => {
      const chosen = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => b.dataset.m));
      for (const item of scope.querySelectorAll(".curve[data-m]")) {
        item.classList.toggle("dim", chosen.size > 0 && !chosen.has(item.dataset.m));
      }
      for (const button of buttons) button.classList.toggle("dim", chosen.size > 0 && !chosen.has(button.dataset.m));
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        show();
      });
    }
  }
})();
