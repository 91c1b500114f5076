// Tables: a click on a column's name sorts by it; another turns the order; a third gives the order back that the run had.
"use strict";
(() => {
  for (const table of document.querySelectorAll("table.grid")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    if (rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, body, rows, head, column));
    });
  }

  function sort(table, body, rows, head, column) {
    const numbers = head.classList.contains("number");
    const cycle = numbers ? [null, "descending", "ascending"] : [null, "ascending", "descending"];
    const next = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    const turn = next === "descending" ? -1 : 1;
    const sorted = next
      ? rows.map((row) => [key(row.cells[column], numbers), row]).sort(([a], [b]) => compare(a, b, turn, numbers))
      : rows.map((row) => [null, row]);
    body.append(...sorted.map(([, row]) => row));
  }

  // A cell without a number, or with one that is not finite, comes last in either order.
  function key(cell, numbers) {
    if (!numbers) return [...cell.childNodes].filter((n) => !n.classList?.contains("mark")).map((n) => n.textContent).join("");
    const value = cell.hasAttribute("data-value") ? Number(cell.dataset.value) : NaN;
    return Number.isFinite(value) ? value : null;
  }

  function compare(a, b, turn, numbers) {
    if (a === null || b === null) return (a === null) - (b === null);
    return turn * (numbers ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  }
})();
