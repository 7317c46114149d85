'use strict';
/*
 * Runs a node handler: node node.cjs FILE [EXPORT], in the directory of the code.
 *
 * Connections come from a listener: an inherited one (LISTEN_FDS=1: descriptor 3, with faasd's control socket as 4 and the
 * status page as 5), or, with FAAS_LISTEN=[::]:8080, one of its own. From there on node's http server serves them as it would anywhere. What a
 * file may export stands in docs/HANDLERS.md. No packages; node 18 or later.
 */

const { AsyncLocalStorage } = require('node:async_hooks');
const { randomBytes } = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const path = require('node:path');
const { Duplex, Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');
const { pathToFileURL } = require('node:url');
const { inspect } = require('node:util');

const LISTENER_FD = 3;
const CONTROL_FD = 4;
const PAGE_FD = 5;
const PAGE_BYTES = 4096;
const REQUESTS_AT = 80; // in the page, as a number of 64 bits, and after it the errors
const COUNTED_MS = 100; // how late a count may be
const BACKLOG = 0x7fffffff; // the system's limit is below it
const PROTOCOL = 1;
const READY = 3;
const DRAINED = 4;
const HELD = 7;
const GO = 8;
const RECORD_BYTES = 32;
const CALLERS = '/run/faasd-callers'; // a symbolic link for each address, whose target is a name

const STALL_MS = 30_000; // for a request's head in all, and for a body that `handle` waits for
const LAST_REQUEST_GRACE_MS = 3_000; // while draining, for one more request on a connection that is idle
const DRAIN_TICK_MS = 50;

function log(...parts) {
  process.stderr.write(parts.map((part) => (typeof part === 'string' ? part : inspect(part))).join(' ') + '\n');
}

function fail(message) {
  fs.writeSync(2, `faasd: ${message}\n`);
  process.exit(1);
}

function setting(name, fallback, low, high) {
  const text = process.env[name] ?? String(fallback);
  if (!/^[0-9]{1,12}$/.test(text) || Number(text) < low || Number(text) > high) {
    fail(`${name} is '${text}'; use ${low} to ${high}`);
  }
  return Number(text);
}

const BODY_BYTES_MAX = setting('FAAS_BODY_BYTES_MAX', 16 << 20, 0, 1 << 30);

// --- requests and their failures ------------------------------------------------------------------------------------

const run = randomBytes(4).toString('hex');
let served = 0;

/** The request that code is at work for, also in what it left to timers and promises. */
const current = new AsyncLocalStorage();

/** One request, as far as failures need to know it. */
class Exchange {
  constructor(req, res) {
    this.req = req;
    this.res = res;
    this.number = ++served;
  }

  get id() {
    return `${run}-${this.number}`;
  }

  /** Writes the trace to the log, and answers with 500, or cuts an answer that has begun. */
  fail(error) {
    const { req, res } = this;
    log(`[${this.id}] ${req.method} ${req.url} failed`);
    log(error instanceof Error ? error.stack ?? String(error) : error);
    if (res.writableEnded || res.destroyed) return;
    if (res.headersSent) {
      res.destroy(); // the client must see that it is cut short
      count(true);
      return;
    }
    for (const name of res.getHeaderNames()) res.removeHeader(name);
    const text = `internal server error, request ${this.id}\n`;
    res.writeHead(500, {
      'Content-Type': 'text/plain; charset=utf-8',
      'Content-Length': Buffer.byteLength(text),
      'X-Request-Id': this.id,
    });
    res.end(text);
  }
}

function astray(kind) {
  return (error) => {
    const exchange = current.getStore();
    if (exchange !== undefined) {
      exchange.fail(error);
    } else {
      log(`${kind}, of no request that is known; the process goes on`);
      log(error instanceof Error ? error.stack ?? String(error) : error);
    }
  };
}

/** Calls the listener for each request, so that whatever it throws, now or later, is the request's own failure. */
function guarded(listener) {
  return function (req, res) {
    const exchange = new Exchange(req, res);
    current.run(exchange, () => {
      try {
        const result = listener.call(this, req, res);
        if (typeof result?.then === 'function') result.then(undefined, (error) => exchange.fail(error));
      } catch (error) {
        exchange.fail(error);
      }
    });
  };
}

// --- the status page -------------------------------------------------------------------------------------------------

/** Answers, and those of them that are the function's own errors. */
const counts = new BigUint64Array(2);
let counting = false;
let due = false;

function count(failed) {
  counts[0] += 1n;
  if (failed) counts[1] += 1n;
  if (counting && !due) {
    due = true;
    setTimeout(show, COUNTED_MS).unref();
  }
}

/**
 * Writes the counts into the page. Node maps no memory, so that each of them costs a system call, which several share: while
 * nobody asks for anything nothing is written.
 */
function show() {
  if (!due) return;
  due = false;
  fs.writeSync(PAGE_FD, counts, 0, counts.byteLength, REQUESTS_AT);
}

/** Counts what the server answers from now on, if there is a page to show it on. */
function countAnswers(server) {
  try {
    const page = fs.fstatSync(PAGE_FD);
    counting = page.isFile() && page.size === PAGE_BYTES;
  } catch {
    // There is none.
  }
  if (!counting) return;
  const answered = function () {
    count(this.statusCode >= 500);
  };
  server.prependListener('request', (_, res) => res.on('finish', answered));
  process.on('exit', show);
}

// --- handle(event, context) ------------------------------------------------------------------------------------------

/** A request that is answered with an error of the client's. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

class Event {
  constructor(req, body) {
    this.method = req.method;
    this.target = req.url;
    this.headers = req.headers;
    this.body = body;
  }

  get path() {
    const raw = this.target.split('?', 1)[0];
    try {
      return decodeURIComponent(raw);
    } catch {
      return raw;
    }
  }

  /** The query's parameters. Of several with one name the last counts; `target` has them all. */
  get query() {
    const at = this.target.indexOf('?');
    return Object.fromEntries(new URLSearchParams(at < 0 ? '' : this.target.slice(at)));
  }

  text() {
    return this.body.toString('utf8');
  }

  /** The body, read as JSON. What is none is answered with 400, unless the handler catches the error. */
  json() {
    try {
      return JSON.parse(this.text());
    } catch (error) {
      throw new Refused(400, `the body is no JSON: ${error.message}`);
    }
  }
}

const peers = new WeakMap();

/** Who is at a socket's other end. Asked for once a connection: an address is its peer's as long as the connection is. */
function peerOf(socket) {
  if (!peers.has(socket)) {
    let name = null;
    try {
      name = fs.readlinkSync(`${CALLERS}/${socket.remoteAddress}`);
    } catch {
      // Nobody's.
    }
    peers.set(socket, name);
  }
  return peers.get(socket);
}

class Context {
  #exchange;

  constructor(exchange) {
    this.#exchange = exchange;
    this.function = process.env.FAAS_FUNCTION ?? '';
    this.revision = process.env.FAAS_REVISION ?? '';
  }

  get requestId() {
    return this.#exchange.id;
  }

  /** The name of who called; null if the platform does not know, or is none. */
  get peer() {
    return peerOf(this.#exchange.req.socket);
  }

  /** The caller's address and port. */
  get client() {
    const { remoteAddress: address, remotePort: port } = this.#exchange.req.socket;
    return { address, port };
  }

  log(...parts) {
    log(`[${this.requestId}]`, ...parts);
  }
}

async function readBody(req) {
  const parts = [];
  let length = 0;
  if (Number(req.headers['content-length'] ?? 0) > BODY_BYTES_MAX) {
    throw new Refused(413, `a body may have ${BODY_BYTES_MAX} bytes`);
  }
  req.setTimeout(STALL_MS, () => req.destroy());
  for await (const part of req) {
    length += part.length;
    if (length > BODY_BYTES_MAX) throw new Refused(413, `a body may have ${BODY_BYTES_MAX} bytes`);
    parts.push(part);
  }
  req.setTimeout(0);
  return parts.length === 1 ? parts[0] : Buffer.concat(parts);
}

function send(res, type, body) {
  res.setHeader('Content-Type', type);
  res.setHeader('Content-Length', Buffer.byteLength(body));
  res.end(body);
}

/** What a handler returned, as an answer. */
async function answer(res, result) {
  if (res.headersSent) return; // something that the handler left behind has failed, and was answered for
  if (result === undefined || result === null) {
    res.writeHead(204).end();
  } else if (typeof result === 'string') {
    send(res, 'text/plain; charset=utf-8', result);
  } else if (result instanceof Uint8Array) {
    send(res, 'application/octet-stream', result);
  } else if (result instanceof Response) {
    await answerWith(res, result);
  } else if (result instanceof ReadableStream || typeof result[Symbol.asyncIterator] === 'function') {
    await stream(res, result);
  } else if (typeof result[Symbol.iterator] === 'function' && typeof result.next === 'function') {
    await stream(res, result);
  } else if (['object', 'number', 'boolean'].includes(typeof result)) {
    send(res, 'application/json', JSON.stringify(result) + '\n');
  } else {
    throw new TypeError(`a handler cannot return a ${typeof result}; see docs/HANDLERS.md`);
  }
}

async function answerWith(res, response) {
  res.statusCode = response.status;
  if (response.statusText) res.statusMessage = response.statusText;
  for (const [name, value] of response.headers) if (name !== 'set-cookie') res.setHeader(name, value);
  const cookies = response.headers.getSetCookie?.() ?? [];
  if (cookies.length > 0) res.setHeader('Set-Cookie', cookies);
  if (response.body === null) res.end();
  else await pipeline(Readable.fromWeb(response.body), res);
}

async function stream(res, parts) {
  if (!res.hasHeader('Content-Type')) res.setHeader('Content-Type', 'application/octet-stream');
  res.flushHeaders();
  const bytes = async function* () {
    for await (const part of parts) yield typeof part === 'string' ? Buffer.from(part) : part;
  };
  await pipeline(Readable.from(bytes(), { objectMode: false }), res);
}

/** Serves a `handle(event, context)`. */
function eventListener(handle) {
  return async (req, res) => {
    const exchange = current.getStore();
    try {
      const event = new Event(req, await readBody(req));
      await answer(res, await handle(event, new Context(exchange)));
    } catch (error) {
      if (error instanceof Refused && !res.headersSent) {
        res.shouldKeepAlive = error.status !== 413;
        res.statusCode = error.status;
        send(res, 'text/plain; charset=utf-8', `${error.message}\n`);
      } else if (req.aborted || res.destroyed) {
        res.destroy(); // the client is gone
      } else {
        throw error;
      }
    }
  };
}

// --- what a file exports ---------------------------------------------------------------------------------------------

/** The names that are looked for, when none is given. */
const NAMES = ['handle', 'default', 'app', 'server', 'handler'];

function choose(module, file, name) {
  // A CommonJS module's `module.exports` is the default of the namespace that `import` makes of it.
  const inner = module.default;
  const find = (name) => module[name] ?? (inner !== null && typeof inner === 'object' ? inner[name] : inner?.[name]);
  for (const candidate of name === undefined ? NAMES : [name]) {
    const found = candidate === 'default' ? module.default?.default ?? module.default : find(candidate);
    // `handle` of an application is a method of it and not what the file exports.
    const isMethod = candidate === 'handle' && module.handle === undefined && isApplication(inner);
    if (found !== undefined && found !== null && !isMethod && isServable(found)) return [candidate, found];
  }
  const names = [...new Set([...Object.keys(module), ...Object.keys(inner ?? {})])].filter((n) => n !== 'module.exports' && n !== 'default');
  const wanted = name === undefined ? 'nothing that can be served' : `no ${name} that can be served`;
  fail(`${file} exports ${wanted}; it exports: ${names.join(', ') || 'nothing'}`);
}

function isApplication(value) {
  if (value === null || !['object', 'function'].includes(typeof value)) return false;
  return ['use', 'routing', 'callback', 'ready', 'fetch'].some((name) => typeof value[name] === 'function')
    || value instanceof http.Server;
}

function isServable(value) {
  return typeof value === 'function' || isApplication(value) || typeof value.handle === 'function';
}

/** A server for what the file exports, and what is to be told of the end. */
async function serverFor(name, exported) {
  if (exported instanceof http.Server) return { server: exported };
  if (typeof exported.ready === 'function' && exported.server instanceof http.Server) {
    // Fastify: its own server has everything that plugins added to it.
    await exported.ready();
    return { server: exported.server, close: () => exported.close() };
  }
  let listener;
  if (typeof exported === 'function') {
    listener = name === 'handle' ? eventListener(exported) : exported;
  } else if (typeof exported.callback === 'function') {
    listener = exported.callback(); // Koa
  } else if (typeof exported.fetch === 'function') {
    listener = fetchListener(exported);
  } else if (typeof exported.routing === 'function') {
    listener = (req, res) => exported.routing(req, res);
  } else {
    listener = (req, res) => exported.handle(req, res);
  }
  // Nothing is closed for being idle, and a slow upload is the function's own business.
  const server = http.createServer({ keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: STALL_MS });
  server.on('request', listener);
  return { server };
}

/** Serves `fetch(Request)`, as Hono and others have it. */
function fetchListener(app) {
  return async (req, res) => {
    const headers = new Headers();
    for (let i = 0; i < req.rawHeaders.length; i += 2) headers.append(req.rawHeaders[i], req.rawHeaders[i + 1]);
    const hasBody = req.method !== 'GET' && req.method !== 'HEAD';
    const url = new URL(req.url, `http://${req.headers.host ?? 'localhost'}`);
    const body = hasBody ? { body: Readable.toWeb(req), duplex: 'half' } : {};
    await answerWith(res, await app.fetch(new Request(url, { method: req.method, headers, ...body })));
  };
}

/** Puts the guard around whoever listens for requests already. */
function guard(server) {
  const listeners = server.listeners('request');
  server.removeAllListeners('request');
  for (const listener of listeners) server.on('request', guarded(listener));
}

// --- the listener, and the end ---------------------------------------------------------------------------------------

function say(kind) {
  const message = Buffer.alloc(8);
  [PROTOCOL, kind, 0, RECORD_BYTES].forEach((word, at) => message.writeUInt16LE(word, at * 2));
  fs.writeSync(CONTROL_FD, message);
}

/** Waits for the word to load the function's code, of which nothing has been looked at before. */
function hold() {
  say(HELD);
  const message = Buffer.alloc(64);
  const length = fs.readSync(CONTROL_FD, message);
  if (length === 0) process.exit(0); // it was not needed
  if (length < 8 || message.readUInt16LE(0) !== PROTOCOL || message.readUInt16LE(2) !== GO) {
    fail(`a message of ${length} bytes came before the word to go`);
  }
}

/**
 * Has node load and compile what the first file and the first request need, by an empty file of ours and a request to a
 * server of nobody's: else whoever waits for a held runner waits for that.
 */
async function rehearse() {
  await import(pathToFileURL(path.join(__dirname, 'empty.mjs')));
  await import(pathToFileURL(path.join(__dirname, 'empty.cjs')));
  const { server } = await serverFor('handle', () => '');
  guard(server);
  await new Promise((resolve) => {
    const connection = new Duplex({
      read() {},
      write(_, __, done) {
        done();
        resolve();
      },
    });
    connection.setTimeout = () => connection;
    server.emit('connection', connection);
    connection.push('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
  });
  served = 0;
}

function where() {
  const address = process.env.FAAS_LISTEN;
  if (address !== undefined) {
    const colon = address.lastIndexOf(':');
    const port = address.slice(colon + 1);
    if (colon < 0 || !/^[0-9]{1,5}$/.test(port) || Number(port) > 65535) {
      fail(`FAAS_LISTEN is '${address}'; write an address and a port, like [::]:8080`);
    }
    return { host: address.slice(0, colon).replace(/^\[|\]$/g, ''), port: Number(port), backlog: BACKLOG };
  }
  if (process.env.LISTEN_FDS !== '1') {
    fail('there is no listener: LISTEN_FDS is not 1; set FAAS_LISTEN=[::]:8080 to run without faasd');
  }
  for (const name of ['LISTEN_FDS', 'LISTEN_PID', 'LISTEN_FDNAMES']) delete process.env[name];
  return { fd: LISTENER_FD, backlog: BACKLOG };
}

function isControlled(place) {
  try {
    return place.fd !== undefined && fs.fstatSync(CONTROL_FD).isSocket();
  } catch {
    return false;
  }
}

function listen(server, place) {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(place, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** Stops accepting, and resolves when the last connection is closed. */
function drain(server, fresh) {
  const begun = Date.now();
  return new Promise((resolve) => {
    // Answers that are still to come say that they are the last of their connections.
    server.prependListener('request', (_, res) => {
      res.shouldKeepAlive = false;
    });
    const tick = setInterval(() => {
      // A client cannot know yet, and may be about to ask.
      if (Date.now() - begun <= LAST_REQUEST_GRACE_MS) return;
      server.closeIdleConnections();
      for (const socket of fresh) socket.destroy();
    }, DRAIN_TICK_MS);
    // Not the HTTP server's own, which closes idle connections at once.
    net.Server.prototype.close.call(server, () => {
      clearInterval(tick);
      resolve();
    });
  });
}

async function load(file) {
  const whole = path.resolve(file);
  if (!fs.existsSync(whole)) {
    fail(`there is no ${file} among: ${fs.readdirSync('.').sort().join(', ') || 'no files at all'}`);
  }
  process.argv = [process.argv[0], whole];
  try {
    return await import(pathToFileURL(whole));
  } catch (error) {
    fs.writeSync(2, `${error?.stack ?? inspect(error)}\n`);
    const remedy = error instanceof SyntaxError && /\b(import|export)\b/.test(error.message)
      ? "; name it *.mjs, or write \"type\": \"module\" in package.json" : '';
    fail(`${file} cannot be loaded${remedy}`);
  }
}

async function main() {
  const [file, name] = process.argv.slice(2);
  if (file === undefined) fail('usage: node node.cjs FILE [EXPORT]');
  const place = where();
  const controlled = isControlled(place);
  const held = process.env.FAAS_HOLD === '1';
  delete process.env.FAAS_HOLD;
  if (held && controlled) {
    await rehearse();
    hold();
  }
  const [chosen, exported] = choose(await load(file), file, name);
  const { server, close } = await serverFor(chosen, exported);
  // A server that was told to listen on a name or an address begins to in a later turn of the loop.
  await new Promise(setImmediate);
  if (server.listening) {
    fail(`${file} listens by itself: export the server without calling listen, or deploy it with ` +
      `\`command = ["node", "${file}"]\``);
  }
  guard(server);
  process.on('uncaughtException', astray('an uncaught exception'));
  process.on('unhandledRejection', astray('an unhandled rejection'));

  // Connections without a request yet, for the drain.
  const fresh = new Set();
  server.on('connection', (socket) => {
    fresh.add(socket);
    socket.once('close', () => fresh.delete(socket));
  });
  if (controlled) countAnswers(server);
  const used = (req) => fresh.delete(req.socket);
  server.prependListener('request', used);
  server.prependListener('upgrade', used);
  if (server.listenerCount('upgrade') === 1) server.off('upgrade', used);

  await listen(server, place);
  let ending = false;
  const end = async () => {
    if (ending) return;
    ending = true;
    await drain(server, fresh);
    try {
      await close?.();
      if (controlled) say(DRAINED);
    } catch (error) {
      if (error.code !== 'EPIPE') log(error);
    }
    process.exit(0);
  };
  process.on('SIGTERM', end);
  process.on('SIGINT', end);
  if (controlled) {
    say(READY);
  } else {
    const { address, port } = server.address();
    log(`listening on ${address.includes(':') ? `[${address}]` : address}:${port}`);
  }
}

main().catch((error) => {
  fs.writeSync(2, `${error?.stack ?? inspect(error)}\n`);
  process.exit(1);
});
