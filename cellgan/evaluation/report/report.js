"use strict";

// What a cell is sorted by: its number, or its text. Undefined cells have an empty
// data-sort and stay at the end whichever way a column is sorted.
function sortKey(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort ?? cell.textContent.trim();
}

function compareKeys(first, second) {
  const numbers = [Number(first), Number(second)];
  return numbers.some(Number.isNaN)
    ? first.localeCompare(second, undefined, { numeric: true })
    : numbers[0] - numbers[1];
}

function sortTable(header) {
  const table = header.closest("table");
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const column = header.cellIndex;
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((first, second) => {
    const keys = [sortKey(first, column), sortKey(second, column)];
    if (keys.includes("")) return (keys[0] === "") - (keys[1] === "");
    return (ascending ? 1 : -1) * compareKeys(...keys);
  });
  body.append(...rows);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortTable(button.closest("th")));
}

const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => {
    const small = button.querySelector("img");
    const large = dialog.querySelector("img");
    large.src = small.src;
    large.alt = small.alt;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
