// Typeset the formulas of a page with the KaTeX that lies beside this file: no network is needed.
document.addEventListener("DOMContentLoaded", () => {
  for (const formula of document.querySelectorAll(".math")) {
    const text = formula.textContent.trim();
    if (!text.startsWith("\\(") && !text.startsWith("\\[")) continue;
    katex.render(text.slice(2, -2), formula, {
      displayMode: text.startsWith("\\["),
      throwOnError: false,
    });
  }
});
