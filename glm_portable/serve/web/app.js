// The conversation: asking, stopping, going on after errors, and keeping it through a reload.

import { begin, isEmpty, take, wholeCalls } from "./answer.js";
import { requestBody, restore, saved } from "./settings.js";
import { ServerError, call, chunks } from "./stream.js";
import { AnswerView, UserView, make, submitOnEnter } from "./view.js";

const $ = (id) => document.getElementById(id);
const SAID = {
  waiting: "Waiting for the first token",
  thinking: "Thinking",
  answering: "Answering",
  calling: "Calling a tool",
  done: "The answer is complete",
  stopped: "Stopped",
  failed: "The answer failed",
};

const turns = [];
const views = [];
let running = null; // the AbortController of the answer that is being received

// --- turns -------------------------------------------------------------------------------------

function add(turn) {
  const handlers = { onAgain: answerAgain, onResults: sendResults };
  const view = turn.role === "user" ? new UserView(turn) : new AnswerView(handlers);
  turns.push(turn);
  views.push(view);
  $("log").append(view.element);
  refresh();
}

function removeLast() {
  views.pop().element.remove();
  const turn = turns.pop();
  refresh();
  return turn;
}

/** Shows the last two turns anew: a turn's buttons depend on whether another follows. */
function refresh() {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  const last = turns.length - 1;
  for (const i of [last - 1, last]) views[i]?.update(turns[i], i === last);
  $("empty").hidden = turns.length > 0;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

// --- asking ------------------------------------------------------------------------------------

async function send() {
  const text = $("text").value;
  if (running || !text.trim()) return;
  const body = requestBody([...turns, { role: "user", text }]);
  if (!body) return;
  $("text").value = "";
  add({ role: "user", text });
  await answer(body);
}

async function sendResults(calls, results) {
  const before = calls.map((found) => found.result);
  calls.forEach((found, i) => (found.result = results[i]));
  const body = running ? null : requestBody(turns);
  if (body) await answer(body);
  else calls.forEach((found, i) => (found.result = before[i]));
}

async function answerAgain() {
  const body = running ? null : requestBody(turns.slice(0, -1));
  if (!body) return;
  await answer(body, removeLast());
}

/** Receives the answer to `body` as the last turn; if none comes, `previous` takes its place. */
async function answer(body, previous = null) {
  const turn = begin(performance.now());
  complain(null);
  add(turn);
  $("log").scrollTop = $("log").scrollHeight;
  setRunning(new AbortController());
  const { signal } = running;
  try {
    const response = await call("v1/chat/completions", key(), { body, signal });
    for await (const chunk of chunks(response, signal)) {
      take(turn, chunk, performance.now());
      draw(turn);
    }
    turn.state = "done";
  } catch (error) {
    turn.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) fail(turn, error);
  }
  setRunning(null);
  if (turns.at(-1) === turn) settle(turn, previous); // else a new chat has begun
}

/** An answer that broke off says why itself; for one that never came, the page does. */
function fail(turn, error) {
  if (!(error instanceof ServerError)) console.error(error);
  if (isEmpty(turn)) complain(error);
  else turn.problem = describe(error);
}

let drawn = 0;

/** Shows a growing answer, at most once a frame. */
function draw(turn) {
  say(SAID[turn.state]);
  drawn ||= requestAnimationFrame(() => {
    drawn = 0;
    refresh();
  });
}

function settle(turn, previous) {
  if (isEmpty(turn) && turn.state !== "done") takeBack(previous);
  else refresh();
  const calls = wholeCalls(turn).map((found) => found.name);
  say(calls.length ? `The model calls ${calls.join(", ")}: type the result` : SAID[turn.state]);
  const elsewhere = ![document.body, $("text"), $("stop")].includes(document.activeElement);
  if (!$("key-form").hidden || elsewhere) return;
  if (!views.at(-1)?.focus?.()) $("text").focus();
}

/** After a failure without an answer: what the user wrote can be changed and sent again. */
function takeBack(previous = null) {
  removeLast();
  if (previous) {
    add(previous);
  } else if (turns.at(-1)?.role === "user") {
    $("text").value = [removeLast().text, $("text").value].filter(Boolean).join("\n");
  } else {
    for (const found of turns.at(-1)?.calls ?? []) found.result = null; // its field still has it
    refresh();
  }
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
}

// --- problems and the key ----------------------------------------------------------------------

function describe(error) {
  const details = [];
  if (error.status) details.push(`status ${error.status}`);
  if (error.requestId) details.push(`request ${error.requestId}`);
  return details.length ? `${error.message} (${details.join(", ")})` : error.message;
}

/** Shows an error above the message field, or none; after a 401, with a field for the key. */
function complain(error, retry = null) {
  const shown = error ? [make("p", {}, describe(error))] : [];
  if (retry) shown.push(make("button", { type: "button", onclick: retry }, "Try again"));
  $("problem").replaceChildren(...shown);
  $("problem").hidden = !error;
  $("key-form").hidden = error?.status !== 401;
  if (error?.status === 401) $("key").focus();
}

function key() {
  return sessionStorage.getItem("api-key");
}

async function useKey() {
  sessionStorage.setItem("api-key", $("key").value.trim());
  $("key").value = "";
  complain(null);
  await loadModels();
  if ($("key-form").hidden) $("text").focus();
}

// --- models ------------------------------------------------------------------------------------

async function loadModels(chosen = $("model").value) {
  try {
    const { data } = await (await call("v1/models", key())).json();
    const options = data.map((model) => make("option", { value: model.id }, model.id));
    data.forEach((model, i) => (options[i].window = model.max_model_len));
    $("model").replaceChildren(...options);
    if (data.some((model) => model.id === chosen)) $("model").value = chosen;
    showWindow();
    complain(null);
  } catch (error) {
    complain(error, error.status === 401 ? null : () => loadModels(chosen));
  }
}

function showWindow() {
  const tokens = $("model").selectedOptions[0]?.window;
  $("window").textContent = tokens ? `context of ${tokens.toLocaleString("en")} tokens` : "";
}

// --- a reload ----------------------------------------------------------------------------------

function save() {
  const state = { turns, draft: $("text").value, settings: saved() };
  sessionStorage.setItem("chat", JSON.stringify(state));
}

function load() {
  const found = JSON.parse(sessionStorage.getItem("chat"));
  if (!found) return undefined;
  restore(found.settings);
  $("text").value = found.draft;
  found.turns.forEach(add);
  const last = turns.at(-1);
  if (last?.role === "assistant" && !["done", "failed"].includes(last.state)) {
    last.state = "stopped"; // the reload did it
    if (isEmpty(last)) takeBack();
  }
  for (let i = 0; i < turns.length; i++) views[i].update(turns[i], i === turns.length - 1);
  $("log").scrollTop = $("log").scrollHeight;
  return found.settings.model;
}

function newChat() {
  if (turns.length && !confirm("Begin a new chat? This one is not kept.")) return;
  running?.abort();
  while (turns.length) removeLast();
  complain(null);
  say("");
  $("text").focus();
}

// --- events ------------------------------------------------------------------------------------

function onSubmit(form, act) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

onSubmit($("composer"), send);
onSubmit($("key-form"), useKey);
submitOnEnter($("text"), $("composer"));
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", newChat);
$("model").addEventListener("change", showWindow);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
addEventListener("pagehide", save);

const chosen = load();
$("text").focus();
loadModels(chosen);
