// The plugin's settings. Whatever is wrong with them is a sentence in `problem`, and then every call is blocked:
// OpenClaw goes on without a plugin that throws while it loads, so this one never does.

import { readFileSync } from "node:fs";

export const ID = "agenticmail-enterprise";
export const VERSION = "1.0.0";
const KEY = /^ek_[A-Za-z0-9_-]{16,200}$/;
const KNOWN = new Set(["apiUrl", "apiKey", "apiKeyFile", "agents", "approvalWaitMs", "requestTimeoutMs"]);
export const MAX_WAIT_MS = 590_000; // OpenClaw gives a hook ten minutes; we answer before it stops listening

/** {apiUrl, keyOf(agentId), approvalWaitMs, requestTimeoutMs, problem} from a plugin config and the environment. */
export function readSettings(config, env = process.env, readFile = readFileSync) {
  try {
    return understood(config ?? {}, env, readFile);
  } catch (error) {
    return broken(error instanceof Error ? error.message : "its settings cannot be read");
  }
}

function broken(problem) {
  return { apiUrl: "", keyOf: () => "", approvalWaitMs: 0, requestTimeoutMs: 1000, keys: [], problem };
}

function understood(config, env, readFile) {
  if (typeof config !== "object" || Array.isArray(config)) throw new Error("its config is no object");
  for (const name of Object.keys(config)) {
    if (!KNOWN.has(name)) throw new Error(`its config has an unknown key ${JSON.stringify(name)}`);
  }
  const url = new URL(text(config.apiUrl ?? env.AGENTICMAIL_API_URL, "apiUrl"));
  if (!["http:", "https:"].includes(url.protocol) || url.username || url.password || url.search || url.hash) {
    throw new Error("apiUrl must be a plain http or https URL");
  }
  const agents = new Map(Object.entries(config.agents ?? {}).map(([id, key]) => [id, checked(key, `agents.${id}`)]));
  const own = config.apiKey ?? (config.apiKeyFile ? readFile(text(config.apiKeyFile, "apiKeyFile"), "utf8") : env.AGENTICMAIL_API_KEY);
  const key = own === undefined ? "" : checked(own, config.apiKeyFile ? "apiKeyFile" : "apiKey");
  if (!key && agents.size === 0) throw new Error("it has no apiKey");
  return {
    apiUrl: url.href.replace(/\/+$/, ""),
    keyOf: (agentId) => agents.get(agentId ?? "") ?? key,
    keys: [...new Set([...agents.values(), ...(key ? [key] : [])])],
    approvalWaitMs: whole(config.approvalWaitMs, MAX_WAIT_MS, 0, 600_000, "approvalWaitMs"),
    requestTimeoutMs: whole(config.requestTimeoutMs, 10_000, 100, 120_000, "requestTimeoutMs"),
    problem: "",
  };
}

function text(value, name) {
  if (typeof value !== "string" || !value.trim()) throw new Error(`${name} is missing`);
  return value.trim();
}

function checked(value, name) {
  if (!KEY.test(text(value, name))) throw new Error(`${name} is no key of the gateway (ek_...)`);
  return value.trim();
}

function whole(value, fallback, least, most, name) {
  if (value === undefined) return Math.min(fallback, MAX_WAIT_MS);
  if (!Number.isInteger(value) || value < least || value > most) throw new Error(`${name} must be ${least} to ${most}`);
  return Math.min(value, MAX_WAIT_MS);
}
