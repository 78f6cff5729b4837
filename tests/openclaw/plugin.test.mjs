// The plugin without OpenClaw: its settings, what it asks, what it does with every kind of answer.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const folder = pathToFileURL(process.env.PLUGIN_DIR + "/");
const { readSettings } = await import(new URL("settings.js", folder));
const { Gateway } = await import(new URL("gateway.js", folder));
const { Guard, serversAtGateway, stable } = await import(new URL("guard.js", folder));
const plugin = (await import(new URL("index.js", folder))).default;

const KEY = "ek_" + "a".repeat(43);
const quiet = { warn: () => {}, error: () => {} };
const ALLOW = { allowed: true, requires_approval: false, reason: "Allowed.", code: "ALLOWED", decision_id: "dec_1", tool: "exec" };
const DENY = { ...ALLOW, allowed: false, reason: "clerk may not call exec.", code: "TOOL_DENIED", decision_id: "dec_2" };
const HOLD = { ...ALLOW, allowed: false, requires_approval: true, reason: "Held.", code: "APPROVAL_REQUIRED", pending: true };

/** A gateway that answers checks from a list (the last one again and again) and remembers what it was sent. */
async function gateway(t, ...answers) {
  const seen = [];
  const server = createServer((request, response) => {
    let text = "";
    request.on("data", (part) => (text += part));
    request.on("end", () => {
      const body = JSON.parse(text);
      seen.push({ path: request.url, key: request.headers["x-api-key"], body });
      const checks = seen.filter((one) => one.path.endsWith("check-permission")).length;
      let answer = { status: 200, json: { data: { decision_id: "dec_1", outcome: "ok", heartbeat: 15 } } };
      if (request.url.endsWith("check-permission")) {
        const said = answers[Math.min(checks, answers.length) - 1];
        answer = said.status ? said : { status: 200, json: { data: said } };
      }
      response.writeHead(answer.status, { "content-type": "application/json", ...(answer.headers ?? {}) });
      response.end(answer.raw ?? JSON.stringify(answer.json));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, seen, of: (end) => seen.filter((one) => one.path.endsWith(end)).map((one) => one.body) };
}

function guardAt(t, url, more = {}, calls = new Map()) {
  const settings = readSettings({ apiUrl: url, apiKey: KEY, ...more }, {});
  const guard = new Guard(settings, new Gateway(settings), quiet, "openclaw/test", calls);
  t.after(() => clearInterval(guard.timer));
  return guard;
}

const event = (more = {}) => ({ toolName: "exec", params: { command: "ls" }, toolCallId: "call_1", runId: "run_1", ...more });
const ctx = { agentId: "main", sessionId: "s1" };

test("settings: what is wrong is said and never thrown", () => {
  const wrong = [
    [{}, "apiUrl is missing"],
    [{ apiUrl: "ftp://x" }, "plain http"],
    [{ apiUrl: "http://u:p@x" }, "plain http"],
    [{ apiUrl: "http://x" }, "no apiKey"],
    [{ apiUrl: "http://x", apiKey: "secret" }, "no key of the gateway"],
    [{ apiUrl: "http://x", apiKey: KEY, apikey: KEY }, "unknown key"],
    [{ apiUrl: "http://x", apiKeyFile: "/nowhere/key" }, "ENOENT"],
    [{ apiUrl: "http://x", apiKey: KEY, approvalWaitMs: 700000 }, "approvalWaitMs"],
    [{ apiUrl: "http://x", apiKey: KEY, agents: { main: 7 } }, "agents.main"],
    ["text", "no object"],
  ];
  for (const [config, part] of wrong) {
    const found = readSettings(config, {});
    assert.ok(found.problem.includes(part), `${JSON.stringify(config)}: ${found.problem}`);
    assert.equal(found.keyOf("main"), "");
  }
});

test("settings: file, environment, one key per agent", () => {
  const file = readSettings({ apiUrl: "http://x/base/", apiKeyFile: "/k" }, {}, () => KEY + "\n");
  assert.deepEqual([file.problem, file.apiUrl, file.keyOf("any")], ["", "http://x/base", KEY]);
  assert.equal(readSettings({}, { AGENTICMAIL_API_URL: "http://x", AGENTICMAIL_API_KEY: KEY }).keyOf("any"), KEY);
  const each = readSettings({ apiUrl: "http://x", agents: { ops: KEY } }, {});
  assert.deepEqual([each.keyOf("ops"), each.keyOf("main")], [KEY, ""]);
});

test("an allowed call runs with the arguments that were judged, and is reported once", async (t) => {
  const { url, seen, of } = await gateway(t, ALLOW);
  const guard = guardAt(t, url);
  assert.deepEqual(await guard.before(event(), ctx, { pin: true }), { params: { command: "ls" } });
  const [asked] = of("check-permission");
  assert.deepEqual(
    [asked.tool, asked.args, asked.runtime, asked.tool_call_id, asked.run_id, asked.session_id],
    ["exec", { command: "ls" }, "openclaw", "call_1", "run_1", "s1"],
  );
  assert.ok(seen.every((one) => one.key === KEY));
  await guard.after(event({ result: {}, durationMs: 12 }), ctx);
  await guard.after(event({ result: {}, durationMs: 12 }), ctx);
  assert.deepEqual(of("tool-calls"), [{ decision_id: "dec_1", outcome: "ok", error: "", duration_ms: 12, args_changed: false }]);
});

test("a denied call is blocked with the gateway's words, and its end is no news", async (t) => {
  const { url, of } = await gateway(t, DENY);
  const guard = guardAt(t, url);
  const answer = await guard.before(event(), ctx);
  assert.equal(answer.block, true);
  assert.match(answer.blockReason, /clerk may not call exec\. \[TOOL_DENIED, decision dec_2\]/);
  await guard.after(event({ result: { details: { status: "blocked" } } }), ctx);
  assert.equal(of("tool-calls").length, 0);
  assert.equal(guard.counts.get(KEY).unchecked, 0);
});

test("whatever is not an answer blocks", async (t) => {
  const bad = [
    { status: 200, raw: "not json" }, { status: 200, raw: "null" }, { status: 200, json: {} }, { status: 200, json: { data: { allowed: "yes" } } },
    { status: 200, json: { data: { ...ALLOW, args: [1] } } }, { status: 200, json: { data: { ...ALLOW, decision_id: undefined } } },
    { status: 401, json: { error: "This API key is not valid." } }, { status: 403, raw: "" }, { status: 500, raw: "<html>" },
    { status: 302, raw: "", headers: { location: "http://127.0.0.1:1/" } },
  ];
  for (const answer of bad) {
    const { url } = await gateway(t, answer);
    const said = await guardAt(t, url).before(event(), ctx);
    assert.equal(said?.block, true, JSON.stringify(answer));
    assert.match(said.blockReason, /could not be asked/);
  }
});

test("a gateway that is away, too slow, or a call that is given up blocks", async (t) => {
  assert.match((await guardAt(t, "http://127.0.0.1:1").before(event(), ctx)).blockReason, /cannot be reached/);
  const hanging = createServer(() => {});
  await new Promise((resolve) => hanging.listen(0, "127.0.0.1", resolve));
  t.after(() => (hanging.closeAllConnections(), hanging.close()));
  const url = `http://127.0.0.1:${hanging.address().port}`;
  const impatient = { requestTimeoutMs: 100, approvalWaitMs: 0 };
  assert.match((await guardAt(t, url, impatient).before(event(), ctx)).blockReason, /in time/);
  const stop = new AbortController();
  const asked = guardAt(t, url).before(event(), { ...ctx, abortSignal: stop.signal });
  stop.abort();
  assert.match((await asked).blockReason, /cancelled/);
});

test("arguments that JSON cannot say, and a call without a name, block", async (t) => {
  const { url, seen } = await gateway(t, ALLOW);
  const guard = guardAt(t, url);
  const circle = {};
  circle.self = circle;
  assert.equal((await guard.before(event({ params: circle }), ctx)).block, true);
  assert.equal((await guard.before(event({ params: { n: 1n } }), ctx)).block, true);
  assert.equal((await guard.before(event({ toolName: "" }), ctx)).block, true);
  assert.equal(seen.filter((one) => one.path.endsWith("check-permission")).length, 0);
});

test("a held call is asked about in rounds until somebody decides", async (t) => {
  const { url, of } = await gateway(t, HOLD, HOLD, ALLOW);
  const answer = await guardAt(t, url).before(event(), ctx, { pin: true });
  assert.deepEqual(answer, { params: { command: "ls" } });
  const asked = of("check-permission");
  assert.equal(asked.length, 3);
  assert.ok(asked.every((one) => one.tool_call_id === "call_1" && one.wait > 20 && one.wait <= 25));
});

test("a held call that may not wait is blocked and says that it needs an approval", async (t) => {
  const { url, of } = await gateway(t, HOLD);
  const answer = await guardAt(t, url, { approvalWaitMs: 0 }).before(event(), ctx);
  assert.match(answer.blockReason, /Held\. It needs an approval/);
  assert.equal(of("check-permission").length, 1);
});

test("edited arguments are what runs, also inside a wrapper", async (t) => {
  const edited = { ...ALLOW, args: { command: "ls -l" } };
  const { url } = await gateway(t, edited);
  const guard = guardAt(t, url);
  assert.deepEqual(await guard.before(event(), ctx), { params: { command: "ls -l" } });
  const wrapped = event({ toolName: "tool_call", params: { id: "exec", args: { command: "ls" } }, toolCallId: "call_2" });
  assert.deepEqual(await guard.before(wrapped, ctx), { params: { id: "exec", args: { command: "ls -l" } } });
});

test("the policy's answer is good for one run of the hook, and only for the same arguments", async (t) => {
  const { url, of } = await gateway(t, ALLOW, { ...ALLOW, decision_id: "dec_9" });
  const guard = guardAt(t, url);
  assert.equal(await guard.before(event(), ctx, { pin: false }), undefined);
  assert.deepEqual(await guard.before(event(), ctx, { pin: true }), { params: { command: "ls" } });
  assert.equal(of("check-permission").length, 1);
  await guard.before(event(), ctx, { pin: true }); // the same id a second time is a second call
  assert.equal(of("check-permission").length, 2);
  const other = event({ toolCallId: "call_2" });
  await guard.before(other, ctx, { pin: false });
  await guard.before({ ...other, params: { command: "rm" } }, ctx, { pin: true });
  const asked = of("check-permission").map((one) => one.args.command);
  assert.deepEqual(asked, ["ls", "ls", "ls", "rm"]);
  assert.deepEqual(of("tool-calls").map((one) => one.outcome), ["cancelled"]);
});

test("what ran without having been checked is counted, and what ran otherwise than judged", async (t) => {
  const { url, of } = await gateway(t, ALLOW);
  const guard = guardAt(t, url);
  await guard.after(event({ toolCallId: "other", result: {} }), ctx);
  await guard.after(event({ toolCallId: "failed", error: "no such tool" }), ctx);
  await guard.before(event(), ctx, { pin: true });
  await guard.after(event({ params: { command: "rm" }, result: {} }), ctx);
  assert.deepEqual(guard.counts.get(KEY), { calls: 1, unchecked: 1, changed: 1 });
  assert.equal(of("tool-calls")[0].args_changed, true);
  await guard.beat();
  const beat = of("heartbeat").at(-1);
  assert.deepEqual([beat.state, beat.unchecked, beat.changed, beat.runtime], ["alive", 1, 1, "openclaw/test"]);
});

test("signs of life begin with the first call and end with a stop", async (t) => {
  const { url, of } = await gateway(t, ALLOW);
  const guard = guardAt(t, url);
  await guard.before(event(), ctx);
  await guard.stop();
  const states = of("heartbeat").map((one) => one.state);
  assert.equal(states.at(-1), "stopped");
  assert.ok(states.includes("alive"));
  assert.equal(guard.timer, undefined);
});

test("only tools of MCP servers that are this gateway are left to it", async (t) => {
  const { url, of } = await gateway(t, DENY);
  const config = {
    mcp: {
      servers: {
        ours: { url: `${url}/mcp` }, mail: { url: `${url}/mcp/mail` }, page: { url: `${url}/api` }, far: { url: "http://elsewhere.test/mcp" },
        local: { command: "node" }, twin: { url: `${url}/mcp` }, twins: { url: "http://elsewhere.test/mcp" }, "od d": { url: `${url}/mcp` },
      },
    },
  };
  const guard = guardAt(t, url);
  guard.gatewayServers = serversAtGateway(config, url);
  assert.deepEqual(guard.gatewayServers, ["ours", "mail"]);
  assert.equal(await guard.before(event({ toolName: "ours__mail__send" }), ctx), undefined);
  const inside = { toolName: "tool_call", params: { id: "mcp:ours:ours__mail__send", args: {} }, toolCallId: "c2" };
  assert.equal(await guard.before(event(inside), ctx), undefined);
  assert.equal((await guard.before(event({ toolName: "far__send" }), ctx)).block, true);
  assert.equal((await guard.before(event({ toolName: "oursx__send" }), ctx)).block, true);
  assert.equal(of("check-permission").length, 2);
});

test("equal arguments are equal in any order", () => {
  assert.equal(stable({ b: [1, { d: 1, c: 2 }], a: null }), stable({ a: null, b: [1, { c: 2, d: 1 }] }));
  assert.notEqual(stable({ a: [1, 2] }), stable({ a: [2, 1] }));
});

/** As much of OpenClaw as registration needs. */
function host(config, more = {}) {
  const hooks = {};
  const policies = [];
  const services = [];
  return {
    hooks, policies, services,
    api: {
      pluginConfig: config, config: {}, logger: quiet,
      on: (name, handler, options) => (hooks[name] = { handler, options }),
      registerTrustedToolPolicy: (policy) => policies.push(policy),
      registerService: (service) => services.push(service),
      ...more,
    },
  };
}

test("registered: the hook runs last, may wait ten minutes, and pins; the policy asks first", async (t) => {
  const { url, of } = await gateway(t, ALLOW);
  const { api, hooks, policies, services } = host({ apiUrl: url, apiKey: KEY });
  plugin.register(api);
  t.after(() => services[0].stop());
  assert.deepEqual(hooks.before_tool_call.options, { priority: -1_000_000, timeoutMs: 600_000 });
  assert.deepEqual(policies.map((policy) => policy.id), ["gateway"]);
  assert.equal(await policies[0].evaluate(event(), ctx), undefined);
  assert.deepEqual(await hooks.before_tool_call.handler(event(), ctx), { params: { command: "ls" } });
  assert.equal(of("check-permission").length, 1);
  await hooks.after_tool_call.handler(event({ result: {} }), ctx);
  assert.equal(of("tool-calls").length, 1);
});

test("registered with bad settings, or in a host that breaks half-way: every call is blocked", async () => {
  for (const [config, more] of [
    [undefined, {}], [{ apiUrl: "http://x" }, {}], [{ apiUrl: 7, apiKey: KEY }, {}],
    [{ apiUrl: "http://127.0.0.1:1", apiKey: KEY, requestTimeoutMs: 100 }, { registerTrustedToolPolicy: () => { throw new Error("not here"); } }],
    [{ apiUrl: "http://127.0.0.1:1", apiKey: KEY }, { get config() { throw new Error("no config"); } }],
  ]) {
    const { api, hooks } = host(config);
    Object.defineProperties(api, Object.getOwnPropertyDescriptors(more));
    assert.doesNotThrow(() => plugin.register(api));
    assert.equal((await hooks.before_tool_call.handler(event(), ctx)).block, true);
  }
});

test("a host without trusted policies or services is enough", async (t) => {
  const { url } = await gateway(t, ALLOW);
  const { api, hooks } = host({ apiUrl: url, apiKey: KEY }, { registerTrustedToolPolicy: undefined, registerService: undefined });
  plugin.register(api);
  t.after(() => hooks.gateway_stop.handler());
  assert.deepEqual(await hooks.before_tool_call.handler(event(), ctx), { params: { command: "ls" } });
});
