// A judgement on its way to the server. It is kept in the browser until it is acknowledged, and sent again with the same
// id: a lost connection, a killed server or a closed page lose nothing and repeat nothing.

export class Outbox {
  constructor(account, notice) {
    this.prefix = `rlhf-pending-${account}-`; // one entry each, so that tabs don't take each other's place
    this.notice = notice;
    this.csrf = document.querySelector('meta[name="csrf"]').content;
  }

  newId() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  pending() {
    try {
      const name = Object.keys(localStorage).find((one) => one.startsWith(this.prefix));
      return name ? JSON.parse(localStorage.getItem(name)) : null;
    } catch {
      return null;
    }
  }

  keep(body) {
    try {
      localStorage.setItem(this.prefix + body.submission, JSON.stringify(body));
    } catch {
      // a browser without storage has it while the page is open
    }
  }

  // Whether the page is left for the next task; false where the server refused it.
  async deliver(body, tries = 0) {
    let status = 0;
    let detail = "";
    try {
      const answer = await fetch("/rank", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-CSRF-Token": this.csrf },
        body: JSON.stringify(body),
      });
      status = answer.status;
      detail = (await answer.json().catch(() => ({}))).detail ?? "";
    } catch {
      status = 0;
    }
    if (status === 200) {
      localStorage.removeItem(this.prefix + body.submission);
      location.assign("/rank");
      return true;
    }
    if (status === 401 || status === 403) {
      this.say("You are logged out. Your judgement is kept here, and is sent once you are back: ", "/login", "log in");
      return true;
    }
    if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
      localStorage.removeItem(this.prefix + body.submission);
      this.say(`Not taken: ${detail}. `, "/rank", "Go on");
      return false;
    }
    this.say("Not saved yet: the server doesn't answer. It is tried again; this judgement is kept in your browser.");
    await new Promise((resolve) => setTimeout(resolve, Math.min(1000 * 2 ** tries, 15000)));
    return this.deliver(body, tries + 1);
  }

  say(text, href, label) {
    this.notice.textContent = text;
    if (href) {
      const link = document.createElement("a");
      link.href = href;
      link.textContent = label;
      this.notice.append(link);
    }
    this.notice.hidden = false;
    this.notice.scrollIntoView({ block: "nearest" });
  }
}
