// Ranking by keys, buttons and dragging.

import { Outbox } from "./outbox.js";

const byId = (id) => document.getElementById(id);
const work = byId("work");
const undoForm = byId("undo");
const outbox = new Outbox(document.querySelector(".status").dataset.account, byId("notice"));

if (work) {
  start(JSON.parse(work.dataset.task));
} else {
  const pending = outbox.pending();
  if (pending) outbox.deliver(pending);
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "u" && !event.ctrlKey && !event.metaKey && undoForm) undoForm.requestSubmit();
  });
}

function start(data) {
  const letters = Object.keys(data.keys);
  const two = letters.length === 2;
  const cards = new Map(letters.map((letter) => [letter, document.querySelector(`.answer[data-letter="${letter}"]`)]));
  const ranks = new Map(); // by letter; an answer without a rank isn't in it
  let allBad = data.allBad;
  let sending = false;
  const comment = byId("comment");

  for (const letter of letters) {
    const before = data.ranks[data.keys[letter]];
    if (before) ranks.set(letter, before);
  }

  // time with the page in front, for the owner's figures
  let seen = 0;
  let since = document.hidden ? null : performance.now();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && since !== null) {
      seen += performance.now() - since;
      since = null;
    } else if (!document.hidden && since === null) {
      since = performance.now();
    }
  });
  const seconds = () => Math.round((seen + (since === null ? 0 : performance.now() - since)) / 100) / 10;

  // what is shown

  function show() {
    const best = Math.min(...ranks.values());
    for (const [letter, card] of cards) {
      const rank = ranks.get(letter);
      card.classList.toggle("ranked", rank !== undefined);
      card.classList.toggle("first", rank !== undefined && rank === best && (!two || new Set(ranks.values()).size > 1));
      for (const button of card.querySelectorAll("[data-rank]")) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.rank) === rank));
      }
      for (const button of card.querySelectorAll("[data-better]")) {
        const other = letters.find((one) => one !== letter);
        button.setAttribute("aria-pressed", String(rank !== undefined && rank < ranks.get(other)));
      }
    }
    for (const tier of document.querySelectorAll(".tier")) {
      tier.querySelectorAll(".chip").forEach((chip) => chip.remove());
      for (const letter of letters) {
        if ((ranks.get(letter) ?? 0) === Number(tier.dataset.tier)) tier.append(chipOf(letter));
      }
    }
    if (two) byId("tie").setAttribute("aria-pressed", String(ranks.size === 2 && new Set(ranks.values()).size === 1));
    byId("bad").setAttribute("aria-pressed", String(allBad));
    byId("submit").disabled = sending || !ready();
    const order = [...ranks].sort((one, other) => one[1] - other[1]).map(([letter, rank]) => `${rank}: ${letter}`);
    byId("said").textContent = order.join(", ") + (allBad ? ", all bad" : "");
  }

  const ready = () => ranks.size === letters.length || (allBad && ranks.size === 0);

  function chipOf(letter) {
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.textContent = letter;
    chip.dataset.drag = letter;
    return chip;
  }

  // what changes it

  function setRank(letter, rank) {
    if (rank) ranks.set(letter, rank);
    else ranks.delete(letter);
    show();
  }

  function nextBest(letter, tie) {
    if (ranks.has(letter)) {
      const freed = ranks.get(letter);
      ranks.delete(letter);
      if (![...ranks.values()].includes(freed)) {
        for (const [other, rank] of ranks) if (rank > freed) ranks.set(other, rank - 1);
      }
    } else {
      const last = Math.max(0, ...ranks.values());
      ranks.set(letter, tie && last ? last : Math.min(last + 1, letters.length));
    }
    show();
  }

  function prefer(letter) {
    for (const one of letters) ranks.set(one, letter === null || one === letter ? 1 : 2);
    show();
  }

  function toggleBad() {
    allBad = !allBad;
    show();
  }

  function toggleComment(open = comment.hidden) {
    comment.hidden = !open;
    byId("comment-button").setAttribute("aria-expanded", String(open));
    if (open) comment.focus();
  }

  // sending

  function send(said) {
    if (sending) return;
    const text = comment.value.trim();
    const body = { task: data.task, submission: outbox.newId(), comment: text || null, seconds: seconds(), ...said };
    outbox.keep(body);
    deliver(body);
  }

  function submit() {
    if (!ready()) return;
    const given = {};
    for (const [letter, rank] of ranks) given[data.keys[letter]] = rank;
    send({ kind: "ranking", ranks: ranks.size ? given : null, all_bad: allBad });
  }

  async function deliver(body) {
    sending = true;
    show();
    const taken = await outbox.deliver(body);
    if (taken) return;
    sending = false;
    show();
  }

  // keys, buttons

  function skip(reason) {
    if (reason.trim()) {
      byId("skip-dialog").close();
      send({ kind: "skip", reason: reason.trim() });
    }
  }

  function move(step) {
    const all = [...cards.values()];
    const at = all.indexOf(document.activeElement?.closest(".answer"));
    all[(at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step + all.length) % all.length].focus();
  }

  function key(event) {
    if (event.altKey || (event.ctrlKey && event.key !== "Enter") || event.metaKey) return;
    const typing = event.target.matches("textarea, input");
    if (typing) {
      if (event.key === "Escape" && event.target === comment) comment.blur();
      if (event.key === "Enter" && event.ctrlKey && event.target === comment) submit();
      return;
    }
    if (byId("skip-dialog").open) {
      const reason = document.querySelectorAll("[data-reason]")[Number(event.key) - 1];
      if (reason) skip(reason.dataset.reason);
      return;
    }
    if (byId("help-dialog").open || sending) return;
    const letter = event.key.toUpperCase();
    const pressed = document.activeElement?.matches("button, a, summary") ? document.activeElement : null;
    if (event.key === "Enter" && !pressed) submit();
    else if (letters.includes(letter) && letters.length <= 12) two ? prefer(letter) : nextBest(letter, event.shiftKey);
    else if (two && (letter === "T" || event.key === "=")) prefer(null);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") move(event.key === "ArrowRight" ? 1 : -1);
    else if (!two && /^[0-9]$/.test(event.key) && Number(event.key) <= letters.length) {
      const focused = document.activeElement?.closest(".answer")?.dataset.letter;
      const target = focused ?? letters.find((one) => !ranks.has(one));
      if (target) setRank(target, Number(event.key));
      if (focused) move(1);
    } else if (event.key === "Backspace") {
      ranks.clear();
      allBad = false;
      show();
    } else if (letter === "X") toggleBad();
    else if (letter === "S") byId("skip-dialog").showModal();
    else if (letter === "M") toggleComment(true);
    else if (letter === "U" && undoForm) undoForm.requestSubmit();
    else if (event.key === "?") byId("help-dialog").showModal();
    else return;
    event.preventDefault();
  }

  document.addEventListener("keydown", key);
  for (const [letter, card] of cards) {
    card.querySelectorAll("[data-rank]").forEach((button) =>
      button.addEventListener("click", () => {
        const rank = Number(button.dataset.rank);
        setRank(letter, ranks.get(letter) === rank ? 0 : rank);
      }),
    );
    card.querySelectorAll("[data-better]").forEach((button) => button.addEventListener("click", () => prefer(letter)));
  }
  byId("tie")?.addEventListener("click", () => prefer(null));
  byId("bad").addEventListener("click", toggleBad);
  byId("submit").addEventListener("click", submit);
  byId("comment-button").addEventListener("click", () => toggleComment());
  byId("skip").addEventListener("click", () => byId("skip-dialog").showModal());
  byId("help").addEventListener("click", () => byId("help-dialog").showModal());
  byId("skip-other").addEventListener("click", () => skip(byId("reason").value));
  byId("reason").addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      skip(byId("reason").value);
    }
  });
  document.querySelectorAll("[data-reason]").forEach((button) =>
    button.addEventListener("click", () => skip(button.dataset.reason)),
  );
  // a button that was clicked shouldn't take the next Enter for itself
  document.addEventListener("pointerup", () => setTimeout(() => document.activeElement?.closest("#work button")?.blur()));

  // dragging, by mouse, pen or finger: an answer's letter, onto a rank

  let dragged = null;
  document.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest?.(".letter, .chip");
    if (!handle || two || sending || event.button) return;
    event.preventDefault();
    const letter = handle.dataset.drag ?? handle.closest(".answer").dataset.letter;
    const ghost = chipOf(letter);
    ghost.classList.add("dragged");
    dragged = { letter, ghost };
    document.body.append(ghost);
    handle.setPointerCapture(event.pointerId);
    follow(event);
  });
  const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".tier");
  function follow(event) {
    dragged.ghost.style.left = `${event.clientX - 15}px`;
    dragged.ghost.style.top = `${event.clientY - 15}px`;
    const tier = under(event);
    document.querySelectorAll(".tier").forEach((one) => one.classList.toggle("over", one === tier));
  }
  function drop(event) {
    if (!dragged) return;
    const tier = event.type === "pointerup" ? under(event) : null;
    dragged.ghost.remove();
    document.querySelectorAll(".tier.over").forEach((one) => one.classList.remove("over"));
    if (tier) setRank(dragged.letter, Number(tier.dataset.tier));
    dragged = null;
  }
  document.addEventListener("pointermove", (event) => dragged && follow(event));
  document.addEventListener("pointerup", drop);
  document.addEventListener("pointercancel", drop);

  // instructions stay as they were left

  const instructions = byId("instructions");
  if (localStorage.getItem("rlhf-instructions") === "closed") instructions.open = false;
  instructions.addEventListener("toggle", () =>
    localStorage.setItem("rlhf-instructions", instructions.open ? "open" : "closed"),
  );
  if (comment.value) toggleComment(true), comment.blur();

  show();
  const pending = outbox.pending();
  if (pending) deliver(pending);
  work.dataset.ready = "";
}
