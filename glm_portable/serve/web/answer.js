// One answer: what it gathers from the chunks, what it measures, and what the model is told of it.

export function begin(now) {
  return {
    role: "assistant",
    state: "waiting", // thinking, answering, calling; at the end done, stopped or failed
    model: null,
    reasoning: "",
    content: "",
    calls: [], // of {id, name, arguments, result}
    finish: null,
    problem: null,
    usage: null,
    sent: now, // times are in milliseconds
    first: null, // with the first token, or the first few that came together
    firstCount: 0,
    thought: null,
    last: null,
  };
}

/** Adds a chunk of the stream that arrived at `now`. */
export function take(answer, chunk, now) {
  const choice = chunk.choices?.[0]; // the last chunk has none, only the usage
  if (choice) {
    const count = chunk.usage?.completion_tokens ?? 0;
    if (answer.first === null) Object.assign(answer, { first: now, firstCount: count });
    if (count > (answer.usage?.completion_tokens ?? 0)) answer.last = now;
    answer.finish = choice.finish_reason ?? answer.finish;
    add(answer, choice.delta ?? {}, now);
  }
  answer.model = chunk.model ?? answer.model;
  answer.usage = chunk.usage ?? answer.usage;
}

function add(answer, { reasoning_content: reasoning, content, tool_calls: calls }, now) {
  if (reasoning) {
    answer.reasoning += reasoning;
    answer.state = "thinking";
    answer.thought = now;
  }
  if (content) {
    answer.content += content;
    answer.state = "answering";
  }
  for (const { index, id, function: part } of calls ?? []) {
    const call = (answer.calls[index] ??= { id, name: "", arguments: "", result: null });
    call.name += part?.name ?? "";
    call.arguments += part?.arguments ?? "";
    answer.state = "calling";
  }
}

export function isEmpty(answer) {
  return !answer.reasoning && !answer.content && !answer.calls.length;
}

/** The calls that can be answered: the token limit may have cut the last one off. */
export function wholeCalls(answer) {
  if (answer.state !== "done") return [];
  return answer.finish === "length" ? answer.calls.slice(0, -1) : answer.calls;
}

/** The measured speed and the tokens, in words; "" while there is nothing to tell. */
export function figures(answer) {
  const { usage, sent, first, firstCount, last, finish, state } = answer;
  const parts = [];
  if (first !== null) parts.push(`first token after ${seconds(first - sent)}`);
  const rate = ((usage?.completion_tokens - firstCount) / (last - first)) * 1000;
  if (Number.isFinite(rate) && rate > 0) parts.push(`${rate.toFixed(1)} tokens/s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`${usage.prompt_tokens} tokens in${cached ? ` (${cached} cached)` : ""}`);
    parts.push(`${usage.completion_tokens} out`);
  }
  if (finish === "length") parts.push("cut off by the token limit");
  if (state === "stopped") parts.push("stopped by you");
  return parts.join(" \u00b7 ");
}

export function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 0)} s`;
}

/** The conversation as the API's messages. A call that is not whole stays out. */
export function messages(system, turns) {
  const found = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") found.push({ role: "user", content: turn.text });
    else found.push(...answerMessages(turn));
  }
  return found;
}

function answerMessages(answer) {
  const calls = wholeCalls(answer);
  const message = { role: "assistant", content: answer.content };
  if (answer.reasoning) message.reasoning_content = answer.reasoning;
  if (calls.length) {
    message.tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id, type: "function", function: { name, arguments: text },
    }));
  }
  const results = calls.filter((call) => call.result !== null);
  return [
    message,
    ...results.map(({ id, result }) => ({ role: "tool", tool_call_id: id, content: result })),
  ];
}
