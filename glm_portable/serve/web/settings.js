// The fields of a request: what the user chose; what is left empty is the server's to choose.

import { messages } from "./answer.js";

const $ = (id) => document.getElementById(id);
const KEPT = ["system", "temperature", "max-tokens", "tools"];
const EXAMPLE = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the weather of a city.",
      parameters: {
        type: "object",
        properties: { city: { type: "string", description: "The city." } },
        required: ["city"],
      },
    },
  },
];

/** The body of a request, or null if a field is wrong: then the page says so beside it. */
export function requestBody(turns) {
  const tools = readTools();
  const fields = [$("temperature"), $("max-tokens"), $("tools")];
  const wrong = fields.find((field) => !field.checkValidity());
  if (wrong) {
    $("settings").open = true;
    wrong.reportValidity();
    return null;
  }
  const body = {
    messages: messages($("system").value.trim(), turns),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  if ($("model").value) body.model = $("model").value;
  if ($("temperature").value) body.temperature = $("temperature").valueAsNumber;
  if ($("max-tokens").value) body.max_completion_tokens = $("max-tokens").valueAsNumber;
  if (!$("thinking").checked) body.chat_template_kwargs = { enable_thinking: false };
  if (tools.length) body.tools = tools;
  return body;
}

/** The tools; [] if there are none or they are wrong, which the field then says. */
function readTools() {
  let tools = [];
  let problem = "";
  try {
    if ($("tools").value.trim()) tools = JSON.parse($("tools").value);
    if (!Array.isArray(tools)) problem = "The tools are not an array: put them into [ ].";
  } catch (error) {
    problem = `The tools are not valid JSON: ${error.message}`;
  }
  $("tools").setCustomValidity(problem);
  $("tools").setAttribute("aria-invalid", String(Boolean(problem)));
  $("tools-problem").textContent = problem;
  $("tools-problem").hidden = !problem;
  return problem ? [] : tools;
}

export function saved() {
  const fields = Object.fromEntries(KEPT.map((id) => [id, $(id).value]));
  return { ...fields, model: $("model").value, thinking: $("thinking").checked };
}

export function restore(found) {
  for (const id of KEPT) $(id).value = found[id];
  $("thinking").checked = found.thinking;
}

$("tools").addEventListener("input", () => $("tools").setCustomValidity(""));
$("tools").addEventListener("change", readTools);
$("example").addEventListener("click", () => {
  $("tools").value = JSON.stringify(EXAMPLE, null, 2);
  readTools();
});
