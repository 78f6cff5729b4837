// AgenticMail Enterprise for OpenClaw: every tool call is judged by the gateway before it runs, and reported after.
//
// Plain JavaScript, no dependency, no build step. `settings.js` reads the config, `gateway.js` speaks to the gateway,
// `guard.js` decides what happens to one call. docs/openclaw.md of the gateway says how to install and check it.

import { Gateway } from "./gateway.js";
import { Guard, serversAtGateway } from "./guard.js";
import { ID, readSettings } from "./settings.js";

const HOOK_MS = 600_000; // the most that OpenClaw lets a hook take: a person may have to decide
const LAST = -1_000_000; // run after every other hook, so that what is pinned is what was judged
const SHARED = Symbol.for("agenticmail-enterprise.guards");
const CALLS = Symbol.for("agenticmail-enterprise.calls"); // a call may end under another configuration than it began

/** One guard per configuration and process: OpenClaw may register a plugin several times. */
function guardFor(api) {
  const settings = readSettings(api.pluginConfig);
  const guards = (globalThis[SHARED] ??= new Map());
  const name = JSON.stringify([settings.apiUrl, settings.keys, settings.problem, settings.approvalWaitMs]);
  let guard = guards.get(name);
  if (!guard) {
    guard = new Guard(settings, new Gateway(settings), api.logger ?? console, runtimeOf(api), (globalThis[CALLS] ??= new Map()));
    guards.set(name, guard);
    if (settings.problem) api.logger?.error?.(`${ID}: every tool call is blocked: ${settings.problem}`);
  }
  guard.gatewayServers = serversAtGateway(api.config, settings.apiUrl);
  return guard;
}

function runtimeOf(api) {
  const version = api.runtime?.version;
  return typeof version === "string" && /^[\w.+-]{1,40}$/.test(version) ? `openclaw/${version}` : "openclaw";
}

export default {
  id: ID,
  name: "AgenticMail Enterprise",
  description: "Asks an AgenticMail Enterprise gateway before every tool call. Fails closed.",
  register(api) {
    // The hook comes first and cannot fail: without it OpenClaw would go on as if nobody asked.
    let guard;
    let broken = "the plugin did not start";
    const before = (options) => async (event, ctx) =>
      guard
        ? await guard.before(event, ctx, options)
        : { block: true, blockReason: `Blocked by AgenticMail Enterprise: ${broken}.` };
    api.on("before_tool_call", before({ pin: true }), { priority: LAST, timeoutMs: HOOK_MS });
    try {
      guard = guardFor(api);
      api.on("after_tool_call", async (event, ctx) => void (await guard.after(event, ctx)));
      api.on("gateway_start", async () => guard.start());
      api.on("session_start", async () => guard.start());
      api.on("gateway_stop", async () => await guard.stop());
      if (typeof api.registerTrustedToolPolicy === "function") {
        api.registerTrustedToolPolicy({
          id: "gateway",
          description: "The gateway's verdict, before any other plugin is asked",
          evaluate: before({ pin: false }),
        });
      }
      api.registerService?.({ id: ID, start: async () => guard.start(), stop: async () => await guard.stop() });
    } catch (error) {
      broken = error instanceof Error ? error.message : String(error);
      api.logger?.error?.(`${ID}: ${broken}`);
    }
  },
};
