// Adds headers to every request that a Node program sends to one origin, without touching the program:
//
//   INJECT_ORIGIN=http://127.0.0.1:8080 INJECT_HEADERS='{"X-API-Key":"..."}' node --import ./inject.mjs program.js
//
// The conformance suite has no option for request headers and speaks through three clients: Node's own fetch, the
// `undici` package and `node:http`. Both undicis announce a request on the diagnostics channel
// `undici:request:create` before its head is written. `node:http` has a channel too, but its request does not tell
// the port it goes to, so its two functions are wrapped. A header that the program sets itself is left alone, and a
// request to any other origin gets nothing: the headers hold a key.
import diagnostics from 'node:diagnostics_channel';
import http from 'node:http';
import { syncBuiltinESMExports } from 'node:module';
import { urlToHttpOptions } from 'node:url';

const origin = new URL(required('INJECT_ORIGIN')).origin;
const headers = Object.entries(JSON.parse(required('INJECT_HEADERS')));

function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`inject.mjs: ${name} is not set`);
  return value;
}

diagnostics.subscribe('undici:request:create', ({ request }) => {
  if (new URL(String(request.origin)).origin !== origin) return;
  // A flat list of names and values, in Node's own undici (6) and in the package (7).
  const present = request.headers.filter((_, index) => index % 2 === 0).map((name) => String(name).toLowerCase());
  for (const [name, value] of headers) {
    if (!present.includes(name.toLowerCase())) request.addHeader(name, value);
  }
});

// Where the socket goes, not what the Host header says: the suite's rebinding probes lie about that.
function originOf([first, second]) {
  const given = typeof first === 'string' || first instanceof URL;
  const options = given ? { ...urlToHttpOptions(new URL(first)), ...second } : first;
  const host = options.hostname ?? options.host ?? 'localhost';
  return new URL(`http://${host}:${options.port || 80}`).origin;
}

const send = http.request;
http.request = function request(...args) {
  const created = send.apply(this, args);
  if (originOf(args) === origin) {
    for (const [name, value] of headers) {
      if (!created.hasHeader(name)) created.setHeader(name, value);
    }
  }
  return created;
};
http.get = function get(...args) {
  const created = http.request(...args);
  created.end();
  return created;
};
syncBuiltinESMExports();
