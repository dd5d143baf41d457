// The playground. What was said stays in this page: the server keeps nothing but what a vote is about.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const csrf = document.querySelector('meta[name="csrf"]').content;
  const limits = JSON.parse($("playground").dataset.limits);
  const numbers = ["temperature", "top_p", "top_k", "max_tokens"];
  let prompts = []; // of the conversation, in order
  let said = {}; // by model: its messages
  let duel = null; // what a vote is awaited on: {key, cards, since, turn}
  let running = null; // AbortController of the question that is being answered

  const boxes = () => [...document.querySelectorAll('input[name="model"]')];
  const chosen = () => boxes().filter((box) => box.checked).map((box) => box.value);
  const label = (id) => boxes().find((box) => box.value === id)?.dataset.label ?? id;

  // ---------------------------------------------------------------- the address: models, prompts, settings, seed
  function address() {
    const query = new URLSearchParams();
    chosen().forEach((id) => query.append("model", id));
    prompts.forEach((prompt) => query.append("prompt", prompt));
    query.set("seed", $("seed").value || "0");
    numbers.forEach((name) => $(name).value !== "" && query.set(name, $(name).value));
    if ($("no-system").checked) query.set("system", "");
    else if ($("system").value.trim()) query.set("system", $("system").value);
    if ($("blind").checked) query.set("blind", "1");
    return `${location.pathname}?${query}`;
  }

  function keepAddress() { history.replaceState(null, "", address()); }

  function restore() {
    const query = new URLSearchParams(location.search);
    const wanted = query.getAll("model");
    if (wanted.length) {
      boxes().forEach((box) => { box.checked = wanted.includes(box.value); });
      const gone = wanted.filter((id) => !boxes().some((box) => box.value === id));
      if (gone.length) notice(`Not offered here: ${gone.join(", ")}`, "warn");
    }
    if (query.has("seed")) $("seed").value = query.get("seed");
    numbers.forEach((name) => { if (query.has(name)) $(name).value = query.get(name); });
    if (query.has("system")) {
      $("system").value = query.get("system");
      $("no-system").checked = query.get("system") === "";
    }
    $("blind").checked = query.get("blind") === "1";
    return query.getAll("prompt");
  }

  // ---------------------------------------------------------------- small things
  function notice(text, kind = "") {
    $("notice").textContent = text || "";
    $("notice").className = `note ${kind}`;
    $("notice").hidden = !text;
  }

  function settle() {
    const count = chosen().length;
    boxes().forEach((box) => { box.disabled = Boolean(running) || (!box.checked && count >= limits.most); });
    $("chosen-count").textContent = count === 1 ? "(1 model)" : `(${count} models)`;
    $("system").disabled = $("no-system").checked;
    $("send").disabled = Boolean(running) || !count || !$("prompt").value.trim();
    $("stop").hidden = !running;
    $("send").hidden = Boolean(running);
    for (const id of ["draw", "anew"]) $(id).disabled = Boolean(running);
    $("draw").disabled ||= !count;
    $("anew").hidden = !prompts.length;
  }

  function begin() { // a new conversation
    prompts = []; said = {}; duel = null;
    $("turns").querySelectorAll(".turn").forEach((turn) => turn.remove());
    $("empty").hidden = false;
    notice("");
    keepAddress(); settle();
  }

  function tag(text, value, kind = "") {
    const made = document.createElement("span");
    made.className = `tag ${kind}`;
    made.append(text);
    if (value !== undefined) {
      const bold = document.createElement("b");
      bold.textContent = value;
      made.append(bold);
    }
    return made;
  }

  function name(card, id) {
    card.element.querySelector(".name").textContent = label(id);
    const box = boxes().find((one) => one.value === id);
    const tags = box ? [...box.closest("label").querySelectorAll(".tag")] : [];
    card.element.querySelector(".aliases").replaceChildren(...tags.map((one) => one.cloneNode(true)));
    card.element.dataset.model = id;
  }

  // ---------------------------------------------------------------- a turn: the prompt, and an answer of each model
  function open(prompt, ids, blind) {
    const turn = $("turn-template").content.firstElementChild.cloneNode(true);
    turn.querySelector(".bubble .text").textContent = prompt.trim();
    const cards = (blind ? ["Left", "Right"] : ids).map((id) => {
      const element = $("answer-template").content.firstElementChild.cloneNode(true);
      const card = { element, text: "", scores: null };
      if (blind) element.querySelector(".name").textContent = id;
      else name(card, id);
      turn.querySelector(".answers").append(element);
      return card;
    });
    $("empty").hidden = true;
    $("turns").append(turn);
    if (turn.previousElementSibling.matches(".turn")) turn.scrollIntoView({ block: "start" });
    return { turn, cards };
  }

  function figures(cards) { // after the last: the best of each score stands out
    const labels = [...new Set(cards.flatMap((card) => Object.keys(card.scores || {})))];
    const best = {};
    for (const one of labels) {
      const values = cards.map((card) => card.scores?.[one]).filter((value) => typeof value === "number");
      if (values.length > 1 && new Set(values).size > 1) best[one] = Math.max(...values);
    }
    for (const card of cards) {
      const tags = Object.entries(card.scores || {}).map(([one, value]) =>
        tag(one, value === null ? "none" : Number(value.toPrecision(3)).toString(), value !== null && best[one] === value ? "good" : ""));
      if (card.done && !card.said && prompts.length > 1) tags.push(tag("asked this alone"));
      if (card.tokens) tags.push(tag(`${card.tokens} tokens${card.ended ? "" : ", cut off"}`));
      card.element.querySelector(".figures").replaceChildren(...tags);
    }
  }

  function close(card) { card.element.setAttribute("aria-busy", "false"); }

  function show(card, event) {
    const text = card.element.querySelector(".text");
    if ("add" in event || "text" in event) {
      card.text = "text" in event ? event.text : card.text + event.add;
      text.textContent = card.text;
    } else if ("error" in event) {
      text.textContent = event.error;
      text.classList.add("nothing");
      close(card);
    } else {
      Object.assign(card, { scores: event.scores, tokens: event.tokens, ended: event.ended, said: event.said, done: true });
      if (event.html) { text.innerHTML = event.html; text.classList.remove("plain"); } // made safe by the server
      else { text.textContent = "(empty)"; text.classList.add("nothing"); }
      close(card);
    }
  }

  async function* events(response) { // server-sent events of a POST
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part.slice("data: ".length));
    }
  }

  async function post(path, body, signal) {
    const response = await fetch(path, {
      method: "POST", signal, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    });
    if (response.ok) return response;
    if (response.status === 401) { location.assign("/login"); }
    if (response.status === 413) throw new Error("This conversation is too long: begin a new one.");
    let why = `The server answered ${response.status}.`;
    try { why = (await response.json()).detail || why; } catch { /* no JSON: the status tells */ }
    throw new Error(why);
  }

  async function ask(prompt) {
    const ids = chosen(), blind = $("blind").checked;
    const remembers = !blind && prompts.length && ids.some((id) => said[id]);
    if (!remembers) { prompts = []; said = {}; }
    const sampling = { seed: Number($("seed").value || 0) };
    numbers.forEach((one) => { if ($(one).value !== "") sampling[one] = Number($(one).value); });
    const system = $("no-system").checked ? "" : $("system").value.trim() || null;
    const question = {
      models: ids, prompt, sampling, system, blind, turn: prompts.length,
      said: Object.fromEntries(ids.filter((id) => said[id]).map((id) => [id, said[id]])),
    };
    const { turn, cards } = open(prompt, ids, blind);
    duel = null;
    prompts.push(prompt);
    keepAddress();
    running = new AbortController();
    notice(""); settle();
    let failed = null, ended = false;
    try {
      const response = await post("/playground/answers", question, running.signal);
      for await (const event of events(response)) {
        if ("at" in event) { notice(""); show(cards[event.at], event); }
        else if ("place" in event) notice(event.place === 1 ? "You are next in the queue." : `You are number ${event.place} in the queue.`);
        else if ("loading" in event) notice(`Loading ${label(event.loading)} …`);
        else if ("notes" in event) remark(turn, event.notes.join(" "), "warn");
        else if ("duel" in event) awaitVote(turn, cards, event);
        else if ("error" in event) failed = event.error;
        else if ("end" in event) ended = true;
      }
      if (!ended) failed = "The server went away.";
    } catch (error) {
      failed = error.name === "AbortError" ? "Stopped." : error.message;
    }
    running = null;
    cards.forEach(close);
    figures(cards);
    if (!blind) cards.forEach((card, at) => { if (card.said) said[ids[at]] = card.said; });
    notice(failed || "", failed && failed !== "Stopped." ? "bad" : "");
    settle();
    return !failed;
  }

  function remark(turn, text, kind) {
    const line = document.createElement("p");
    line.className = `note ${kind}`;
    line.textContent = text;
    turn.append(line);
  }

  // ---------------------------------------------------------------- votes
  function awaitVote(turn, cards, event) {
    const votes = $("votes-template").content.firstElementChild.cloneNode(true);
    if (event.why) {
      remark(turn, `Nothing to vote on: ${event.why}.`, "");
      votes.querySelectorAll("button:not([data-choice=none])").forEach((button) => button.remove());
    }
    duel = { key: event.duel, cards, turn, votes, since: Date.now(), votable: !event.why };
    votes.addEventListener("click", (click) => {
      const button = click.target.closest("[data-choice]");
      if (button) vote(button.dataset.choice);
    });
    turn.append(votes);
    votes.scrollIntoView({ block: "nearest" });
    if (event.why === null) votes.focus({ preventScroll: true }); // for the keys; not on a button, which Enter would press
  }

  async function vote(choice) {
    const on = duel;
    if (!on) return;
    on.votes.querySelectorAll("button").forEach((button) => { button.disabled = true; });
    try {
      const response = await post("/playground/votes", { duel: on.key, choice, seconds: (Date.now() - on.since) / 1000 });
      const told = await response.json();
      on.cards.forEach((card, at) => { name(card, told.models[at]); card.scores = told.scores[at] ?? null; });
      figures(on.cards);
      on.votes.remove();
      if (choice !== "none") remark(on.turn, { left: "You preferred the left one.", right: "You preferred the right one.", tie: "A tie.", bad: "Both bad." }[choice] + " Thank you.", "good");
      duel = null;
      $("prompt").focus();
    } catch (error) {
      notice(error.message, "bad");
      on.votes.querySelectorAll("button").forEach((button) => { button.disabled = false; });
    }
  }

  // ---------------------------------------------------------------- what people do
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = $("prompt").value;
    if (running || !prompt.trim() || !chosen().length) return;
    $("prompt").value = "";
    ask(prompt).then((well) => { if (!well && !$("prompt").value) $("prompt").value = prompt; settle(); });
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
  });
  $("prompt").addEventListener("input", settle);
  $("stop").addEventListener("click", () => running?.abort());
  $("anew").addEventListener("click", () => { begin(); $("prompt").focus(); });
  $("reseed").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 1e6); keepAddress(); });
  $("link").addEventListener("click", async () => {
    const link = new URL(address(), location.href).href;
    try { await navigator.clipboard.writeText(link); notice("The link is copied: it restores models, prompts, settings and seed."); }
    catch { notice(link); }
  });
  $("draw").addEventListener("click", async () => {
    try {
      const response = await fetch(`/playground/prompt?model=${encodeURIComponent(chosen()[0])}`, { headers: { "Content-Type": "application/json" } });
      const told = await response.json();
      if (!response.ok) throw new Error(told.detail);
      $("prompt").value = told.prompt;
      notice("");
    } catch (error) { notice(error.message, "warn"); }
    settle(); $("prompt").focus();
  });
  $("settings").addEventListener("change", (event) => {
    if (["model", "blind"].includes(event.target.name || event.target.id) || ["system", "no-system"].includes(event.target.id)) {
      if (prompts.length) { prompts = []; said = {}; notice("From here on: a new conversation."); }
    }
    keepAddress(); settle();
  });
  document.addEventListener("keydown", (event) => {
    const choice = ["left", "tie", "bad", "right"][Number(event.key) - 1];
    if (choice && duel?.votable && !event.target.closest("textarea, input") && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); vote(choice); }
  });

  if (matchMedia("(max-width: 860px)").matches) $("settings").open = false;
  (async () => { // a link's conversation is asked again: the same seed gives the same answers
    const asked = restore();
    settle();
    for (const [turn, prompt] of asked.entries()) {
      if (!(await ask(prompt))) { $("prompt").value = asked[turn]; break; }
    }
    settle();
  })();
})();
