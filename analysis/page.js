"use strict";
// Draws every figure of the page in the colours of the page, and again when those change.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const cards = Array.from(document.querySelectorAll("[data-figures]"), (card) => ({
    plot: card.querySelector(".plot"),
    buttons: Array.from(card.querySelectorAll(".tabs button")),
    figures: JSON.parse(document.getElementById(card.dataset.figures).textContent),
    shown: 0,
  }));

  function draw(card) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--fg").trim();
    const line = style.getPropertyValue("--line").trim();
    const ground = style.getPropertyValue("--card").trim();
    const figure = card.figures[card.shown];
    const narrow = card.plot.clientWidth < 520;
    const layout = Object.assign({}, figure.layout, {
      font: { color: ink, size: narrow ? 11 : 13, family: getComputedStyle(document.body).fontFamily },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
      hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: ink } },
      xaxis: Object.assign({ gridcolor: line, linecolor: line, automargin: true }, figure.layout.xaxis),
      yaxis: Object.assign({ gridcolor: line, linecolor: line, automargin: true }, figure.layout.yaxis),
    });
    Plotly.react(card.plot, figure.data, layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
    card.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === card.shown)));
  }

  cards.forEach((card) => {
    card.buttons.forEach((button, i) => {
      button.addEventListener("click", () => { card.shown = i; draw(card); });
    });
    draw(card);
  });
  dark.addEventListener("change", () => cards.forEach(draw));
})();
