// A tap on a name in a legend shows that series alone; a second tap shows all again.
for (const legend of document.querySelectorAll(".legend")) {
  const figure = legend.closest("figure");
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const chosen = !button.classList.contains("chosen");
    figure.querySelectorAll(".chosen").forEach((element) => element.classList.remove("chosen"));
    figure.classList.toggle("alone", chosen);
    legend.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(chosen && other === button)));
    if (chosen) {
      button.classList.add("chosen");
      figure.querySelectorAll(`.series[data-series="${button.dataset.series}"]`).forEach((e) => e.classList.add("chosen"));
    }
  });
}
