// What happens to one tool call: ask before it runs, pin what was approved, report how it ended. Fails closed.
//
// OpenClaw asks up to twice: the trusted policy first, then, after other plugins may have changed the arguments, the
// hook. The second asks the gateway again only where something changed, and pins the arguments that were judged.

import { GatewayError } from "./gateway.js";
import { VERSION } from "./settings.js";

const MAX_CALLS = 5000; // calls remembered between "before" and "after"; the oldest are forgotten beyond

export class Guard {
  constructor(settings, gateway, logger, runtime = "", calls = new Map()) {
    this.settings = settings;
    this.gateway = gateway;
    this.logger = logger;
    this.runtime = runtime;
    this.instance = globalThis.crypto.randomUUID();
    this.calls = calls; // by agent, run and call id
    this.reported = new Set();
    this.counts = new Map(); // key -> {calls, unchecked, changed}
    this.gatewayServers = [];
    this.timer = undefined;
  }

  /** What `before_tool_call` and a trusted policy return: undefined, {params} or {block, blockReason}. Never throws. */
  async before(event, ctx = {}, { pin = false } = {}) {
    let answer;
    try {
      answer = await this.#before(event, ctx, pin);
    } catch (error) {
      answer = refused(error instanceof GatewayError ? error.message : "its plugin failed");
    }
    if (answer?.block) this.#remember(callId(event, ctx), { ended: true });
    return answer;
  }

  async #before(event, ctx, pin) {
    const key = this.#key(ctx);
    if (typeof key !== "string") return key;
    this.start();
    const tool = event.toolName;
    const params = event.params ?? {};
    if (typeof tool !== "string" || !tool) return refused("the call has no tool name");
    const id = callId(event, ctx);
    if (this.#servedByGateway(tool, params)) {
      this.#remember(id, { ended: true });
      return undefined;
    }
    const said = stable(params);
    const known = pin && id ? this.calls.get(id) : undefined;
    if (known?.fresh) {
      // The policy asked a moment ago about this very call: its answer is good for one run.
      known.fresh = false;
      if (known.tool === tool && known.said === said) return { params: known.params };
      await this.#supersede(key, known);
    }
    const counts = this.#count(key);
    counts.calls += 1;
    const answer = await this.gateway.check(key, this.#question(event, ctx, tool, params), ctx.abortSignal);
    if (answer.allowed !== true) return { block: true, blockReason: sentence(answer) };
    let approved = params;
    if (answer.args !== undefined) approved = tool === "tool_call" ? { ...params, args: answer.args } : answer.args;
    this.#remember(id, {
      tool, said: stable(approved), params: approved, decision: answer.decision_id, fresh: !pin, ended: false,
    });
    return pin || answer.args !== undefined ? { params: approved } : undefined;
  }

  /** How a call ended. Never throws, and nobody waits for it but a test. */
  async after(event, ctx = {}) {
    try {
      await this.#after(event, ctx);
    } catch (error) {
      this.logger.warn?.(`agenticmail-enterprise: a report was lost: ${error?.message ?? error}`);
    }
  }

  async #after(event, ctx) {
    const key = this.#key(ctx);
    if (typeof key !== "string") return;
    const id = callId(event, ctx);
    const known = id ? this.calls.get(id) : undefined;
    if (known?.ended) return;
    if (!known) {
      // A call that failed may have failed before anybody could be asked: only what ran counts.
      if (event.error || blockedByHost(event) || this.#servedByGateway(event.toolName, event.params)) return;
      this.#count(key).unchecked += 1;
      this.logger.warn?.(`agenticmail-enterprise: ${event.toolName} ended without having been checked`);
      return;
    }
    known.ended = true;
    const changed = event.params !== undefined && stable(event.params) !== known.said;
    if (changed) this.#count(key).changed += 1;
    if (this.reported.has(known.decision)) return;
    this.reported.add(known.decision);
    if (this.reported.size > MAX_CALLS) this.reported.delete(this.reported.values().next().value);
    const error = typeof event.error === "string" ? event.error : "";
    await this.gateway.report(key, {
      decision_id: known.decision,
      outcome: error ? "error" : "ok",
      error: error.slice(0, 2000),
      duration_ms: Math.min(Math.max(Number(event.durationMs) || 0, 0), 86_400_000),
      args_changed: changed,
    });
  }

  // -- signs of life -------------------------------------------------------------------------------------------------
  /** Begin to say that the hook is there; once is enough. */
  start(intervalMs = 15_000) {
    if (this.timer !== undefined || this.settings.problem) return;
    this.timer = setInterval(() => void this.beat(), intervalMs);
    this.timer.unref?.(); // never what keeps a process alive
    void this.beat();
  }

  async beat(state = "alive") {
    for (const key of this.settings.keys) {
      const facts = { instance: this.instance, runtime: this.runtime, plugin: VERSION, state, ...this.#count(key) };
      try {
        const { data } = await this.gateway.beat(key, facts);
        this.#keepPace(data?.heartbeat);
      } catch (error) {
        this.logger.warn?.(`agenticmail-enterprise: no sign of life could be given: ${error?.message ?? error}`);
      }
    }
  }

  #keepPace(seconds) {
    if (!(seconds >= 1) || this.pace === seconds || this.timer === undefined) return;
    this.pace = seconds;
    clearInterval(this.timer);
    this.timer = setInterval(() => void this.beat(), seconds * 1000);
    this.timer.unref?.();
  }

  async stop() {
    if (this.timer === undefined) return;
    clearInterval(this.timer);
    this.timer = undefined;
    await this.beat("stopped");
  }

  // -- parts ---------------------------------------------------------------------------------------------------------
  #key(ctx) {
    if (this.settings.problem) return refused(`the plugin cannot work: ${this.settings.problem}`);
    const key = this.settings.keyOf(ctx.agentId);
    return key || refused(`no key is set for the agent ${JSON.stringify(ctx.agentId ?? "")}`);
  }

  #question(event, ctx, tool, params) {
    return {
      tool,
      args: params,
      runtime: "openclaw",
      tool_kind: event.toolKind ?? ctx.toolKind ?? "",
      tool_call_id: short(event.toolCallId ?? ctx.toolCallId) || globalThis.crypto.randomUUID(),
      run_id: short(event.runId ?? ctx.runId),
      session_id: short(ctx.sessionId ?? ctx.sessionKey),
    };
  }

  #remember(id, facts) {
    if (!id) return;
    this.calls.delete(id);
    this.calls.set(id, facts);
    if (this.calls.size > MAX_CALLS) this.calls.delete(this.calls.keys().next().value);
  }

  #count(key) {
    let counts = this.counts.get(key);
    if (!counts) this.counts.set(key, (counts = { calls: 0, unchecked: 0, changed: 0 }));
    return counts;
  }

  /** The arguments changed after they were judged: what was allowed will not run. */
  async #supersede(key, known) {
    known.ended = true;
    if (this.reported.has(known.decision)) return;
    this.reported.add(known.decision);
    try {
      await this.gateway.report(key, { decision_id: known.decision, outcome: "cancelled", error: "superseded" });
    } catch {
      // the decision stays open and reads `unknown`; the new one counts
    }
  }

  /** Tools of MCP servers that are this very gateway are judged there, call by call. */
  #servedByGateway(tool, params) {
    const id = tool === "tool_call" && typeof params?.id === "string" ? params.id.trim() : "";
    const inner = id.startsWith("mcp:") ? id.split(":").slice(2).join(":") : id;
    return this.gatewayServers.some((name) => (inner || String(tool)).startsWith(`${name}__`));
  }
}

/** The names of OpenClaw's MCP servers whose URL is the gateway's own `/mcp`, as OpenClaw puts them before tools. */
export function serversAtGateway(config, apiUrl) {
  const found = [];
  const servers = config?.mcp?.servers;
  if (!servers || typeof servers !== "object" || !apiUrl) return found;
  const own = new URL(apiUrl);
  const base = own.pathname.replace(/\/+$/, "");
  for (const [name, server] of Object.entries(servers)) {
    try {
      const url = new URL(server.url);
      const inside = url.pathname === `${base}/mcp` || url.pathname.startsWith(`${base}/mcp/`);
      // Only plain names that no other server's tools could begin with: the rest is simply judged here as well.
      const others = Object.keys(servers).filter((other) => other !== name);
      const alone = !others.some((other) => other.toLowerCase().startsWith(name.toLowerCase()));
      if (url.origin === own.origin && inside && alone && /^[A-Za-z][A-Za-z0-9-]{0,29}$/.test(name)) found.push(name);
    } catch {
      // a server without a URL is not the gateway
    }
  }
  return found;
}

/** JSON with sorted keys: equal values are equal strings. Throws for what JSON cannot say. */
export function stable(value) {
  return JSON.stringify(value, (_, inner) =>
    inner && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)))
      : inner,
  );
}

function callId(event, ctx) {
  const id = event.toolCallId ?? ctx.toolCallId;
  return id ? `${ctx.agentId ?? ""}\0${event.runId ?? ctx.runId ?? ""}\0${id}` : "";
}

function short(value) {
  return typeof value === "string" ? value.slice(0, 256) : "";
}

/** OpenClaw tells of calls that it blocked itself, too: their result says so. */
function blockedByHost(event) {
  return event.result?.details?.status === "blocked";
}

function sentence(answer) {
  const reason = typeof answer.reason === "string" && answer.reason ? answer.reason : "This call is not allowed.";
  const held = answer.requires_approval ? " It needs an approval; ask for it, and try again later." : "";
  return `${reason}${held} [${answer.code ?? "DENIED"}, decision ${answer.decision_id}]`;
}

function refused(why) {
  return { block: true, blockReason: `Blocked because the AgenticMail Enterprise gateway could not be asked: ${why}.` };
}
