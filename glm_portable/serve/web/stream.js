// Talking to the server: one request, its answer or its stream of events, and its errors.

/** What the server or the network refused, in the server's own words. */
export class ServerError extends Error {
  constructor(message, { status = 0, requestId = null } = {}) {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

/** The response to a request. Throws ServerError. */
export async function call(path, key, { body, signal } = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServerError(`The server cannot be reached: ${error.message}.`);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const about = { status: response.status, requestId: response.headers.get("x-request-id") };
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 500) || response.statusText || "no reason given";
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch {
    // Not an error object: something between here and the server answered.
  }
  return new ServerError(message, about);
}

/**
 * The chunks of a streamed answer, until [DONE]. Throws ServerError for an error in the stream,
 * and for a stream that ends without [DONE]: what came is then not the whole answer.
 */
export async function* chunks(response, signal) {
  const requestId = response.headers.get("x-request-id");
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, { requestId });
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || signal?.aborted) throw error;
    throw new ServerError(`The answer broke off: ${error.message}.`, { requestId });
  }
  throw new ServerError("The answer broke off: the connection was closed.", { requestId });
}

/** The data of each server-sent event in a stream of bytes, however the bytes are cut. */
export async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      // A carriage return that ends the piece may be the first half of a line break.
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
