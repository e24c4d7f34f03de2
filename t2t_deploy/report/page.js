"use strict";
(() => {
  // -- the table: a click on a heading sorts, a second one turns the order round ---------------
  const table = document.getElementById("results");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const choice = document.getElementById("sort-by");
  const measured = [...body.rows];

  const order = (index, descending) => {
    const known = [], unknown = [];
    for (const row of measured) {
      (row.cells[index].dataset.sort === "" ? unknown : known).push(row);
    }
    const numeric = headings[index].classList.contains("number") ||
      known.every((row) => row.cells[index].dataset.sort.trim() !== "" &&
        Number.isFinite(Number(row.cells[index].dataset.sort)));
    known.sort((a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[index].dataset.sort);
      const difference = numeric ? Number(x) - Number(y) : x.localeCompare(y);
      return descending ? -difference : difference;
    });
    return [...known, ...unknown]; // what has no value is last in either order
  };

  const sort = (index, descending) => {
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    if (index === null) {
      body.append(...measured);
      return;
    }
    headings[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...order(index, descending));
  };

  headings.forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      choice.value = String(index);
      sort(index, descending);
    });
  });
  choice.addEventListener("change", () => {
    sort(choice.value === "" ? null : Number(choice.value), false);
  });

  // -- pointing at a case, in the table or in a chart, shows it in all charts ------------------
  const marks = [...document.querySelectorAll("[data-series]")];
  const point = (number) => {
    for (const mark of marks) {
      mark.classList.toggle("aside", number !== null && mark.dataset.series !== number);
    }
  };
  for (const mark of marks) {
    mark.addEventListener("pointerenter", () => point(mark.dataset.series));
    mark.addEventListener("pointerleave", () => point(null));
  }

  // -- the command -----------------------------------------------------------------------------
  const copy = document.getElementById("copy");
  if (navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", () => {
      navigator.clipboard.writeText(document.getElementById("command").textContent).then(
        () => { copy.textContent = "Copied"; },
        () => { copy.textContent = "Not allowed here"; },
      );
    });
  }
})();
