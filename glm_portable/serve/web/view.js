// What a turn of the conversation looks like.

import { figures, seconds, wholeCalls } from "./answer.js";
import { show } from "./markdown.js";

const WORKING = new Set(["waiting", "thinking", "answering", "calling"]);

/** An element with properties and children; a child that is text becomes a text node. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function article(name, kind) {
  const heading = make("h2", {}, name);
  return { element: make("article", { className: kind }, heading), heading };
}

export class UserView {
  constructor(turn) {
    this.element = article("You", "user").element;
    this.element.append(make("div", { className: "said" }, turn.text));
  }

  update() {}
}

export class AnswerView {
  #heading;
  #thinking;
  #thought = document.createTextNode("");
  #summary = make("summary");
  #content = make("div", { className: "said" });
  #calls = make("div");
  #figures = make("p", { className: "quiet figures" });
  #problem = make("p", { className: "problem" });
  #again;
  #callViews = [];
  #touched = false;
  #onResults;

  constructor({ onAgain, onResults }) {
    const { element, heading } = article("", "answer");
    this.element = element;
    this.#heading = heading;
    this.#onResults = onResults;
    this.#summary.addEventListener("click", () => (this.#touched = true));
    const text = make("div", { className: "thought" }, this.#thought);
    this.#thinking = make("details", { hidden: true }, this.#summary, text);
    this.#again = make("button", { type: "button", className: "again", onclick: onAgain });
    this.#again.append("Answer again");
    element.append(this.#thinking, this.#content, this.#calls, this.#problem, this.#figures);
    element.append(this.#again);
  }

  /** Shows what has become of the answer; `last`: no turn follows it. */
  update(turn, last) {
    const working = WORKING.has(turn.state);
    this.#heading.textContent = turn.model ?? "Answer";
    this.element.setAttribute("aria-busy", String(working));
    this.#think(turn);
    show(this.#content, turn.content);
    turn.calls.forEach((call, i) => {
      if (!this.#callViews[i]) {
        this.#callViews[i] = new CallView(() => this.#send(turn));
        this.#calls.append(this.#callViews[i].element);
      }
      this.#callViews[i].update(call, working, last && wholeCalls(turn).includes(call));
    });
    this.#problem.textContent = turn.problem ?? "";
    this.#problem.hidden = !turn.problem;
    this.#figures.textContent = figures(turn);
    this.#again.hidden = working || !last;
  }

  #think(turn) {
    const thinking = turn.state === "thinking";
    this.#thinking.hidden = !turn.reasoning;
    if (!this.#touched) this.#thinking.open = thinking;
    this.#thought.data = turn.reasoning.trim();
    const time = turn.first === null ? "" : ` for ${seconds(turn.thought - turn.first)}`;
    this.#summary.textContent = thinking ? "Thinking\u2026" : `Thought${time}`;
  }

  /** Hands the results over, once every call that can be answered has one. */
  #send(turn) {
    const whole = wholeCalls(turn);
    const open = this.#callViews.filter((view, i) => whole.includes(turn.calls[i]));
    const missing = open.find((view) => !view.draft.trim());
    if (missing) return missing.focus();
    this.#onResults(whole, open.map((view) => view.draft));
  }

  /** To the first result that is asked for, if there is one. */
  focus() {
    return this.#callViews.some((view) => view.focus());
  }
}

let fields = 0; // numbers the fields, so that their labels find them

class CallView {
  #name = make("code");
  #arguments = make("code");
  #note = make("p", { className: "quiet" }, "This call is not whole, so it has no result.");
  #field = make("textarea", { rows: 2, id: `result-${fields++}` });
  #label = make("label", { htmlFor: this.#field.id });
  #form;
  #result = make("div", { className: "result" });

  constructor(send) {
    this.#form = make("form", {}, this.#label, this.#field);
    this.#form.append(make("button", { type: "submit" }, "Send the result"));
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    submitOnEnter(this.#field, this.#form);
    const heading = make("h3", {}, "Calls ", this.#name);
    const code = make("pre", { tabIndex: 0 }, this.#arguments);
    this.element = make("section", { className: "call" }, heading, code, this.#note);
    this.element.append(this.#form, this.#result);
  }

  get draft() {
    return this.#field.value;
  }

  focus() {
    if (this.#form.hidden) return false;
    this.#field.focus();
    return true;
  }

  update(call, working, answerable) {
    this.#name.textContent = call.name;
    this.#arguments.textContent = pretty(call.arguments);
    this.#label.textContent = `Result of ${call.name}`;
    this.#note.hidden = working || answerable || call.result !== null;
    this.#form.hidden = !answerable || call.result !== null;
    this.#result.hidden = call.result === null;
    this.#result.replaceChildren(make("h3", {}, "Result"), make("pre", {}, call.result ?? ""));
  }
}

/** Arguments as they are read best; while they are still coming, as they came. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Enter submits and Shift+Enter breaks the line, but not while a letter is being composed. */
export function submitOnEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
