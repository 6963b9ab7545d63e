"use strict";
// Draws counts, grid and list of runs from the data of board.py. All words are set as text, never
// as HTML. In the live page it draws before anything else is loaded, and again into the elements
// that React makes; in the exported page there is nothing to open and it draws once.
(function () {
  let tip = null;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function read(cell) {
    const [row, column, id, state, step, steps, score, best, shade, bad, diverged, minutes, metric, note] = cell;
    return { row, column, id, state, step, steps, score, best, shade, bad, diverged, minutes, metric, note };
  }

  function link(run, className, text, still) {
    const node = make(still ? "span" : "a", className, text);
    if (!still) node.href = "/run/" + encodeURIComponent(run.id);
    return node;
  }

  function progress(run) {
    const left = run.minutes === null ? "" : `, ${run.minutes} min left`;
    return `${run.step.toLocaleString("en")} / ${run.steps.toLocaleString("en")}${left}`;
  }

  function drawCounts(place, data) {
    place.replaceChildren(...data.counts.map(([number, words, state]) =>
      make("span", state ? `chip s-${state}` : "chip", `${number} ${words}`)));
  }

  function ink(shade) {
    // From a pale to a dark blue, through lightness alone: it reads in grey and without colours.
    return `hsl(211 ${40 + 35 * shade}% ${92 - 62 * shade}%)`;
  }

  function square(run, data, size, share, number, still) {
    const node = link(run, `cell s-${run.state}`, undefined, still);
    node.style.gridRow = run.row + 3;
    node.style.gridColumn = run.column + 2;
    if (share > 1) {  // several runs in one place stand side by side
      node.style.width = `${size / share}px`;
      node.style.marginLeft = `${number * size / share}px`;
    }
    if (run.shade !== null) {
      node.style.background = ink(run.shade);
      node.classList.add("scored");
    }
    if (run.bad) node.classList.add("cross");
    node.tabIndex = -1;
    node.run = run;
    node.setAttribute("aria-label", words(run, data).join(", "));
    return node;
  }

  function words(run, data) {
    const [model, task, seed] = data.columns[run.column];
    const lines = [data.rows[run.row], [model, task, seed && `seed ${seed}`].filter(Boolean).join(" · ")];
    lines.push(`${run.state}${run.diverged ? ", diverged" : ""}, step ${progress(run)}`);
    if (run.metric) lines.push(`${run.metric} ${run.score}, best ${run.best}`);
    if (run.note) lines.push(run.note);
    lines.push(run.id);
    return lines;
  }

  function drawGrid(place, data, still) {
    if (!data.cells.length) {
      place.replaceChildren(make("p", "note", "no run yet"));
      return;
    }
    const box = make("div", "board");
    const room = (place.clientWidth || 1100) - Math.min(320, 0.4 * (place.clientWidth || 1100));
    const size = Math.max(13, Math.min(28, Math.floor(room / data.columns.length) - 2));
    box.style.setProperty("--size", `${size}px`);
    box.style.setProperty("--names", `${Math.max(180, (place.clientWidth || 1100) - 30 - data.columns.length * (size + 2))}px`);
    box.style.gridTemplateColumns = `minmax(90px, max-content) repeat(${data.columns.length}, ${size}px)`;
    for (let from = 0; from < data.columns.length; ) {
      const [model, task] = data.columns[from];
      let end = from;
      while (end < data.columns.length && data.columns[end][0] === model && data.columns[end][1] === task) end += 1;
      const head = make("div", (end - from) * (size + 2) < 56 ? "head tall" : "head");
      head.append(make("b", "", task || model), " ", make("span", "", task ? model : ""));
      head.title = `${task} · ${model}`;
      head.style.gridColumn = `${from + 2} / ${end + 2}`;
      box.append(head);
      from = end;
    }
    data.columns.forEach(([, , seed], i) => {
      const node = make("div", "seed", seed);
      node.style.gridColumn = i + 2;
      box.append(node);
    });
    data.rows.forEach((name, i) => {
      // The rate stands at the end of a long name and tells its rows apart: it is never cut off.
      const cut = Math.max(name.lastIndexOf(", lr "), 0) || name.length;
      const node = make("div", "name");
      node.append(make("span", "method", name.slice(0, cut)), make("span", "rate", name.slice(cut)));
      node.title = name;
      node.style.gridRow = i + 3;
      box.append(node);
    });
    const runs = data.cells.map(read);
    const there = new Map();
    for (const run of runs) {
      const key = `${run.row} ${run.column}`;
      there.set(key, (there.get(key) || []).concat(run));
    }
    // Down the page in order, whatever the order of the list, so that screen readers follow.
    const places = [...there.values()].sort((a, b) => a[0].row - b[0].row || a[0].column - b[0].column);
    for (const own of places) {
      own.forEach((run, i) => box.append(square(run, data, size, own.length, i, still)));
    }
    box.querySelector(".cell").tabIndex = 0;
    const scroll = make("div", "scroll");
    scroll.append(box);
    const legend = make("p", "note legend");
    legend.append("last dev score, worst ", make("span", "ramp"), " best of the same model and task; ",
      make("span", "cell s-running key"), " running ", make("span", "cell s-planned key"), " no score yet ",
      make("span", "cell s-failed cross key"), " failed, lost or diverged");
    const held = place.contains(document.activeElement) && document.activeElement.run;
    place.replaceChildren(scroll, legend);
    place.data = data;
    const again = held && [...box.querySelectorAll(".cell")].find((node) => node.run.id === held.id);
    if (again) focus(again);
  }

  function drawList(place, data, still) {
    const table = make("table");
    const head = make("tr");
    for (const name of ["run", "method", "model · task · seed", "state", "step", "dev now", "dev best", "note"]) {
      head.append(make("th", "", name));
    }
    table.append(make("thead"), make("tbody"));
    table.tHead.append(head);
    for (const run of data.cells.slice(0, data.page).map(read)) {
      const row = make("tr", run.bad ? "bad" : "");
      const first = make("td");
      first.append(link(run, "", run.id.slice(0, 16), still));
      const state = make("td");
      state.append(make("span", `chip s-${run.state}`, run.state));
      if (run.diverged) state.append(make("span", "chip s-diverged", "diverged"));
      row.append(first, make("td", "", data.rows[run.row]),
        make("td", "", data.columns[run.column].filter(Boolean).join(" · ")), state,
        make("td", "", progress(run)), make("td", "", run.score), make("td", "", run.best),
        make("td", "wrap", run.note));
      table.tBodies[0].append(row);
    }
    const scroll = make("div", "scroll");
    scroll.append(table);
    const more = data.cells.length - data.page;
    place.replaceChildren(scroll, ...(more > 0 ? [make("p", "note", `${more} more: filter to see them`)] : []));
  }

  function draw(data, still) {
    const find = (id) => document.getElementById(id);
    if (find("counts")) drawCounts(find("counts"), data);
    if (find("grid")) drawGrid(find("grid"), data, still);
    if (find("list")) drawList(find("list"), data, still);
    hide();
  }

  // --- what a square says, under the pointer and under the keyboard --------------------------------

  function hide() {
    if (tip) tip.hidden = true;
  }

  function tell(node) {
    if (!tip) document.body.append(tip = make("div", "tip"));
    const place = node.closest("#grid");
    tip.replaceChildren(...words(node.run, place.data).map((line, i) => make(i ? "div" : "b", "", line)));
    tip.hidden = false;
    const at = node.getBoundingClientRect();
    const left = Math.min(at.right + 6, window.innerWidth - tip.offsetWidth - 8);
    const below = at.bottom + 6 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - 6 - tip.offsetHeight)}px`;
  }

  function focus(node) {
    node.focus();
  }

  function squareOf(event) {
    const node = event.target.closest ? event.target.closest("#grid .cell") : null;
    return node && node.run ? node : null;
  }

  document.addEventListener("focusin", (event) => {
    const node = squareOf(event);
    if (!node) return;
    node.closest(".board").querySelector('.cell[tabindex="0"]').tabIndex = -1;
    node.tabIndex = 0;  // the tab key comes back to where it was
  });
  for (const kind of ["mouseover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const node = squareOf(event);
      if (node) tell(node); else hide();
    });
  }
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const node = squareOf(event);
    if (!move || !node) return;
    event.preventDefault();
    // The nearest square in that direction, those in line first.
    let best = null;
    for (const other of node.closest(".board").querySelectorAll(".cell")) {
      const down = other.run.row - node.run.row, right = other.run.column - node.run.column;
      const ahead = down * move[0] + right * move[1], aside = Math.abs(down * move[1]) + Math.abs(right * move[0]);
      if (ahead > 0 && (!best || ahead + 1000 * aside < best.far)) best = { node: other, far: ahead + 1000 * aside };
    }
    if (best) focus(best.node);
  });

  document.addEventListener("click", (event) => {
    const node = event.target.closest ? event.target.closest('a[href^="/run/"]') : null;
    const plain = !(event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    const dash = window.dash_clientside;
    if (!node || !plain || !dash || !dash.set_props) return;  // the browser opens it by itself
    event.preventDefault();
    hide();
    window.scrollTo(0, 0);
    dash.set_props("at", { pathname: node.getAttribute("href"), search: "" });
  });

  // --- first drawing -------------------------------------------------------------------------------

  const given = document.getElementById("board-data");
  let latest = given ? JSON.parse(given.textContent) : null;
  const first = document.getElementById("first");
  window.zolab = {
    draw: (data) => {
      latest = data;
      draw(data);
    },
  };
  if (latest && (!first || location.pathname === "/")) draw(latest, !first);
  if (first) {
    const app = document.getElementById("react-entry-point");
    const watch = new MutationObserver(() => {
      if (!app.querySelector("#grid")) return;
      watch.disconnect();
      first.remove();
      if (location.pathname === "/") draw(latest);
    });
    watch.observe(app, { childList: true, subtree: true });
  }
})();
