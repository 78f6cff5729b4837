// The gateway as the plugin sees it: one POST at a time, and an answer that is either sound or an Error.

const ROUND_S = 25; // seconds of one round of waiting: below what proxies and clients take for a dead connection

export class GatewayError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "GatewayError";
    this.status = status;
  }
}

export class Gateway {
  constructor(settings, fetchFn = globalThis.fetch) {
    this.settings = settings;
    this.fetch = fetchFn;
  }

  /** The answer to a check, waiting for an approval where one is needed. Throws GatewayError. */
  async check(key, question, signal, now = Date.now) {
    const until = now() + this.settings.approvalWaitMs;
    for (;;) {
      const wait = Math.max(0, Math.min(ROUND_S, (until - now()) / 1000));
      const { data } = await this.post(key, "/api/engine/check-permission", { ...question, wait }, signal, wait * 1000);
      if (!sound(data)) throw new GatewayError("the gateway's answer is not understood");
      if (data.pending !== true || wait <= 0) return data;
    }
  }

  report(key, facts) {
    return this.post(key, "/api/engine/tool-calls", facts);
  }

  beat(key, facts) {
    return this.post(key, "/api/engine/hooks/heartbeat", facts);
  }

  async post(key, path, body, signal, extraMs = 0) {
    const timeout = AbortSignal.timeout(this.settings.requestTimeoutMs + extraMs);
    let response, text;
    try {
      response = await this.fetch(this.settings.apiUrl + path, {
        method: "POST",
        headers: { "content-type": "application/json", accept: "application/json", "x-api-key": key },
        body: JSON.stringify(body),
        redirect: "error",
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      });
      text = await response.text();
    } catch (error) {
      if (signal?.aborted) throw new GatewayError("the call was cancelled");
      throw new GatewayError(timeout.aborted ? "the gateway did not answer in time" : "the gateway cannot be reached");
    }
    const answer = parsed(text);
    if (!response.ok) {
      const why = typeof answer?.error === "string" ? answer.error : `the gateway answered ${response.status}`;
      throw new GatewayError(why, response.status);
    }
    if (answer === undefined) throw new GatewayError("the gateway's answer is not understood");
    return answer;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function sound(data) {
  return (
    typeof data === "object" && data !== null && typeof data.allowed === "boolean" &&
    typeof data.requires_approval === "boolean" && typeof data.decision_id === "string" &&
    (data.args === undefined || (typeof data.args === "object" && data.args !== null && !Array.isArray(data.args)))
  );
}
