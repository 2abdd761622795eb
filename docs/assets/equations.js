// Sets every formula of a page; again after Material's own page changes.
const set = () =>
  document.querySelectorAll(".arithmatex").forEach((formula) => {
    const text = formula.textContent.trim();
    katex.render(text.slice(2, -2), formula, { displayMode: text.startsWith("\\["), throwOnError: false });
  });
document$.subscribe(set);
