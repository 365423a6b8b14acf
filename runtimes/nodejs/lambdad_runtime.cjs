'use strict';
// The Node.js runtime client of lambdad.
//
// It asks the Runtime API for events, calls the function's handler and posts what
// comes back, as AWS's Node.js runtimes do (runtimes.md section 3). AWS's clients
// come in two generations, to nodejs22.x and from nodejs24.x, and the function's
// runtime identifier says which of them this one is, whatever Node.js runs it. It
// needs node:net and nothing else at start: each further module delays every cold
// start.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const util = require('node:util');
const url = require('node:url');
const nodeModule = require('node:module');

const VERSION = '1.0.0';
// The exit code without a Runtime API: lambdad asks for it once, to see that this
// file runs as the script.
const NOTHING_TO_ASK = 42;
const API = '/2018-06-01/runtime/';
// An X-Ray cause above this is left out: it travels in a header.
const MAX_CAUSE = 64 << 10;

const generation = (() => {
  const m = /^AWS_Lambda_nodejs(\d+)\.x$/.exec(process.env.AWS_EXECUTION_ENV || '');
  return (m ? +m[1] : +process.versions.node.split('.')[0]) >= 24 ? 4 : 3;
})();

// What is under way: one invocation at a time.
let requestId = generation === 3 ? 'undefined' : '-';
let tenantId;
let traceId;
let current = null;

// ---------------------------------------------------------------- Runtime API

// A connection to the Runtime API, kept alive, without timeouts: the process is
// frozen while it waits for an event. It keeps the event loop alive only while a
// request is under way, so that an empty loop means that the function is done.
class Connection {
  constructor(address) {
    const i = address.lastIndexOf(':');
    this.host = i < 0 ? address : address.slice(0, i).replace(/^\[|\]$/g, '');
    this.port = i < 0 ? 80 : +address.slice(i + 1);
    this.socket = null;
    this.waiting = null;
  }

  open() {
    const socket = net.connect({ host: this.host, port: this.port, noDelay: true });
    socket.on('data', (data) => this.receive(socket, data));
    socket.on('error', (err) => this.lost(socket, err));
    socket.on('close', () => this.lost(socket, null));
    this.socket = socket;
  }

  // Sends head, a string of ASCII, and body, a string or bytes; resolves to
  // { status, headers, body }.
  request(head, body) {
    return new Promise((resolve, reject) => {
      const reused = this.socket !== null;
      this.waiting = { resolve, reject, head, body, reused, rest: null };
      if (reused) this.socket.ref();
      else this.open();
      this.send();
    });
  }

  send() {
    const { head, body } = this.waiting;
    if (typeof body === 'string') {
      this.socket.write(head + body);
    } else {
      this.socket.cork();
      this.socket.write(head, 'latin1');
      this.socket.write(body);
      this.socket.uncork();
    }
  }

  lost(socket, err) {
    if (this.socket !== socket) return;
    this.socket = null;
    socket.destroy();
    const w = this.waiting;
    if (w === null) return;
    // The other side may close a connection that has been idle, also between our
    // last look and this request; then once more.
    if (w.reused && w.rest === null) {
      w.reused = false;
      this.open();
      this.send();
      return;
    }
    this.waiting = null;
    w.reject(err || new Error('the Runtime API closed the connection'));
  }

  receive(socket, data) {
    const w = this.waiting;
    if (w === null || this.socket !== socket) return;
    w.rest = w.rest === null ? data : Buffer.concat([w.rest, data]);
    let answer;
    try {
      answer = parseAnswer(w.rest);
    } catch (err) {
      this.lost(socket, err);
      return;
    }
    if (answer === null) return;
    this.waiting = null;
    if (answer.keep) {
      socket.unref();
    } else {
      this.socket = null;
      socket.destroy();
    }
    w.resolve(answer);
  }
}

// Parses an HTTP answer; null while it is not whole.
function parseAnswer(data) {
  for (;;) {
    const end = data.indexOf('\r\n\r\n');
    if (end < 0) return null;
    const lines = data.latin1Slice(0, end).split('\r\n');
    const m = /^HTTP\/1\.([01]) (\d{3})/.exec(lines[0]);
    if (m === null) throw new Error('the Runtime API answered with something that is not HTTP/1.1: ' + lines[0].slice(0, 80));
    const status = +m[2];
    if (status < 200) {
      data = data.subarray(end + 4);
      continue;
    }
    const headers = {};
    for (let i = 1; i < lines.length; i++) {
      const colon = lines[i].indexOf(':');
      headers[lines[i].slice(0, colon).toLowerCase()] = text(lines[i].slice(colon + 1).trim());
    }
    const keep = m[1] === '1' && (headers.connection || '').toLowerCase() !== 'close';
    let body;
    if (/chunked/i.test(headers['transfer-encoding'] || '')) {
      body = parseChunks(data, end + 4);
    } else if (status === 204) {
      body = data.subarray(0, 0);
    } else {
      const length = +headers['content-length'];
      if (!(length >= 0)) throw new Error('the Runtime API answered without a length');
      body = data.length < end + 4 + length ? null : data.subarray(end + 4, end + 4 + length);
    }
    return body === null ? null : { status, headers, body, keep };
  }
}

function parseChunks(data, at) {
  const parts = [];
  for (;;) {
    const line = data.indexOf('\r\n', at);
    if (line < 0) return null;
    const size = parseInt(data.latin1Slice(at, line), 16);
    if (!(size >= 0)) throw new Error('the Runtime API sent a chunk without a size');
    at = line + 2;
    if (size === 0) {
      if (data.latin1Slice(at, at + 2) === '\r\n' || data.indexOf('\r\n\r\n', at) >= 0) return Buffer.concat(parts);
      return null;
    }
    if (data.length < at + size + 2) return null;
    parts.push(data.subarray(at, at + size));
    at += size + 2;
  }
}

// Header values are UTF-8 when they are not ASCII.
function text(latin1) {
  return /[\x80-\xff]/.test(latin1) ? Buffer.from(latin1, 'latin1').toString() : latin1;
}

class Client {
  constructor(address) {
    this.address = address;
    this.connection = new Connection(address);
    this.common = ` HTTP/1.1\r\nHost: ${address}\r\nUser-Agent: aws-lambda-nodejs/${process.version}-${VERSION}\r\n`;
    this.nextHead = 'GET ' + API + 'invocation/next' + this.common + '\r\n';
  }

  async next() {
    const answer = await this.connection.request(this.nextHead, '');
    if (answer.status !== 200) throw new Error(`GET invocation/next: the Runtime API answered ${answer.status}: ${answer.body}`);
    return answer;
  }

  head(where, headers, length) {
    return 'POST ' + API + where + this.common + headers + 'Content-Length: ' + length + '\r\n\r\n';
  }

  async post(where, headers, body, accepted, connection = this.connection) {
    const answer = await connection.request(this.head(where, headers, Buffer.byteLength(body)), body);
    if (!accepted.includes(answer.status)) throw new Error(`POST ${where}: the Runtime API answered ${answer.status}: ${answer.body}`);
  }

  // An answer that is too large has been replaced by the platform: go on.
  postResponse(id, body) {
    return this.post('invocation/' + id + '/response', 'Content-Type: application/json\r\n', body, [202, 413]);
  }

  postError(id, failure, connection) {
    return this.post('invocation/' + id + '/error', 'Content-Type: application/json\r\n' + causeHeader(failure.cause),
      JSON.stringify(failure.body), [202, 413], connection);
  }

  postInitError(failure) {
    const type = String(failure.body.errorType).replace(/[^\x20-\x7e]/g, ' ');
    return this.post('init/error', 'Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: ' + type + '\r\n' + causeHeader(failure.cause),
      JSON.stringify(failure.body), [202], new Connection(this.address));
  }
}

function causeHeader(cause) {
  return cause.length > MAX_CAUSE ? '' : 'lambda-runtime-function-xray-error-cause: ' + cause + '\r\n';
}

// ---------------------------------------------------------------- errors

// A failure that is the client's to word, not the function's.
class Fault extends Error {
  constructor(type, message, stack) {
    super(message);
    this.name = type;
    this.stack = stack === undefined ? type + ': ' + message : stack;
  }
}

function isError(e) {
  return util.types.isNativeError(e) || (typeof e === 'object' && e !== null && Boolean(e.name && e.message && e.stack));
}

// What is posted of something thrown, with its X-Ray cause.
function describe(e) {
  try {
    if (isError(e)) {
      const stack = String(e.stack || '').split('\n');
      return { body: { errorType: String(e.name).replace(/\x7f/g, '%7F'), errorMessage: String(e.message).replace(/\x7f/g, '%7F'), trace: stack.map((l) => l.replace(/\x7f/g, '%7F')) }, cause: causeOf(e) };
    }
    return { body: { errorType: typeof e, errorMessage: String(e), trace: [] }, cause: '' };
  } catch {
    return { body: { errorType: 'handled', errorMessage: 'callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack' }, cause: '' };
  }
}

function causeOf(e) {
  const stack = [];
  for (const line of String(e.stack || '').split('\n').slice(1)) {
    const m = /^\s*at (?:(.*?) \()?(.*?):(\d+):\d+\)?$/.exec(line);
    if (m) stack.push({ path: m[2], line: +m[3], label: m[1] || 'anonymous' });
  }
  const cause = JSON.stringify({
    working_directory: process.cwd(), exceptions: [{ type: e.name, message: e.message, stack }],
    paths: [...new Set(stack.map((f) => f.path))],
  });
  return cause.replace(/[^\x20-\x7e]/g, (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
}

// The runtime's own record of a failure.
function logError(title, e) {
  if (jsonLogs) {
    emit('ERROR', [isError(e) ? e : describe(e).body]);
    return;
  }
  let record;
  if (isError(e)) {
    record = { errorType: e.name, errorMessage: e.message };
    if (e.code !== undefined) record.code = e.code;
    record = { ...record, ...own(e), stack: String(e.stack || '').split('\n') };
  } else {
    record = { errorType: typeof e, errorMessage: String(e), stack: [] };
  }
  let line;
  try {
    line = JSON.stringify(record);
  } catch {
    line = JSON.stringify(describe(e).body);
  }
  emit('ERROR', [title + ' \t' + line]);
}

// An error's own properties besides the usual ones.
function own(e) {
  const rest = {};
  for (const k of Object.keys(e)) {
    if (k !== 'name' && k !== 'message' && k !== 'stack') rest[k] = e[k];
  }
  return rest;
}

// ---------------------------------------------------------------- logging

const LEVELS = { TRACE: 1, DEBUG: 2, INFO: 3, WARN: 4, ERROR: 5, FATAL: 6 };
const jsonLogs = (process.env.AWS_LAMBDA_LOG_FORMAT || '').toUpperCase() === 'JSON';
let logFD = -1; // of frames; -1: standard output

function writeAll(fd, data) {
  while (data.length > 0) {
    try {
      data = data.subarray(fs.writeSync(fd, data));
    } catch (err) {
      if (err.code !== 'EAGAIN') return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

// Writes a record, whole: as a frame with its length (traps.md section 5), or as a
// line of standard output.
function writeRecord(level, line, json) {
  if (logFD < 0) {
    writeAll(1, Buffer.from(line.replace(/\n/g, '\r') + '\n'));
    return;
  }
  const body = Buffer.from(line);
  const frame = Buffer.alloc(16 + body.length);
  frame.writeUInt32BE((json ? 0xa55a0002 : 0xa55a0003) + LEVELS[level] * 4, 0);
  frame.writeUInt32BE(body.length, 4);
  frame.writeBigUInt64BE(BigInt(Date.now()) * 1000n, 8);
  body.copy(frame, 16);
  writeAll(logFD, frame);
}

function emit(level, args) {
  const time = new Date().toISOString();
  if (!jsonLogs) {
    writeRecord(level, `${time}\t${requestId}\t${level}\t${util.format(...args)}`, false);
    return;
  }
  const record = { timestamp: time, level, requestId };
  if (tenantId) record.tenantId = tenantId;
  if (args.length === 1) {
    record.message = args[0];
  } else if (args.length > 1) {
    record.message = util.format(...args);
    const e = args.find(isError);
    if (e !== undefined) Object.assign(record, plainError(e));
  }
  let line;
  try {
    line = JSON.stringify(record, (_, v) => (isError(v) ? plainError(v) : v));
  } catch {
    record.message = util.format(...args);
    line = JSON.stringify(record);
  }
  writeRecord(level, line, true);
}

function plainError(e) {
  const type = (e.constructor && e.constructor.name && e.constructor !== Fault && e.constructor.name) || e.name;
  return { errorType: type, errorMessage: e.message, stackTrace: String(e.stack || '').split('\n'), ...own(e) };
}

function setUpConsole() {
  const fd = process.env._LAMBDA_TELEMETRY_LOG_FD;
  if (fd !== undefined) {
    delete process.env._LAMBDA_TELEMETRY_LOG_FD;
    if (/^\d+$/.test(fd)) logFD = +fd;
  }
  const wanted = LEVELS[(process.env.AWS_LAMBDA_LOG_LEVEL || '').toUpperCase()] || LEVELS.TRACE;
  const set = (name, level) => {
    console[name] = LEVELS[level] >= wanted || level === 'FATAL' ? (...args) => emit(level, args) : () => {};
  };
  set('trace', 'TRACE');
  set('debug', 'DEBUG');
  set('info', 'INFO');
  set('log', 'INFO');
  set('warn', 'WARN');
  set('error', 'ERROR');
  set('fatal', 'FATAL');
}

// ---------------------------------------------------------------- streaming

const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
const HIGH_WATER_MARK = Symbol.for('aws.lambda.runtime.handler.streaming.highWaterMark');
const HTTP_INTEGRATION = 'application/vnd.awslambda.http-integration-response';

function streamingFault(message) {
  return generation === 4 ? new Fault('InvalidStreamingOperation', message) : new Error(message);
}

// makeResponseStream makes the writable whose content is the answer of an
// invocation: chunks of a request of its own, ended by trailers that say how it
// went. The class is made when somebody streams.
let ResponseStream;
function makeResponseStream(client, id, highWaterMark) {
  if (ResponseStream === undefined) {
    const { Writable } = require('node:stream');
    ResponseStream = class ResponseStream extends Writable {
      constructor(options) {
        super(options);
        this._type = undefined;
        this._socket = null;
        this._began = false;
        this._onBeforeFirstWrite = undefined;
        this._failure = null;
        this.answered = new Promise((resolve, reject) => {
          this._resolve = resolve;
          this._reject = reject;
        });
        this.answered.catch(() => {});
      }

      setContentType(type) {
        if (this._began) throw streamingFault('Cannot set content-type, too late.');
        this._type = type;
      }

      write(chunk, encoding, callback) {
        if (chunk !== null && typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) chunk = JSON.stringify(chunk);
        if (!this._began && !this.writableEnded && this._onBeforeFirstWrite) {
          const before = this._onBeforeFirstWrite;
          this._onBeforeFirstWrite = undefined;
          before((part) => super.write(part));
        }
        this._began = true;
        return super.write(chunk, encoding, callback);
      }

      end(chunk, encoding, callback) {
        if (chunk !== undefined && chunk !== null && typeof chunk !== 'function') {
          this.write(chunk, typeof encoding === 'string' ? encoding : undefined);
          chunk = undefined;
        }
        return super.end(chunk, encoding, callback);
      }

      _open() {
        if (this._socket !== null) return;
        this._began = true;
        const connection = new Connection(client.address);
        const socket = net.connect({ host: connection.host, port: connection.port, noDelay: true });
        let rest = Buffer.alloc(0);
        socket.on('data', (data) => {
          rest = Buffer.concat([rest, data]);
          try {
            const answer = parseAnswer(rest);
            if (answer === null) return;
            if (answer.status === 202 || answer.status === 413) this._resolve();
            else this._reject(new Error(`POST invocation/${id}/response: the Runtime API answered ${answer.status}: ${answer.body}`));
          } catch (err) {
            this._reject(err);
          }
          socket.destroy();
        });
        socket.on('error', (err) => this._reject(err));
        socket.on('close', () => this._reject(new Error('the Runtime API closed the connection of a stream')));
        socket.write('POST ' + API + 'invocation/' + id + '/response' + client.common +
          'Content-Type: ' + (this._type || 'application/octet-stream') + '\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n' +
          'Transfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\nTrailer: Lambda-Runtime-Function-Error-Body\r\nConnection: close\r\n\r\n');
        this._socket = socket;
      }

      _write(chunk, _, callback) {
        this._open();
        if (this._socket.destroyed || chunk.length === 0) {
          callback();
          return;
        }
        this._socket.cork();
        this._socket.write(chunk.length.toString(16) + '\r\n', 'latin1');
        this._socket.write(chunk);
        this._socket.write('\r\n', 'latin1', () => callback());
        this._socket.uncork();
      }

      _final(callback) {
        this._open();
        let trailers = '';
        if (this._failure !== null) {
          trailers = 'Lambda-Runtime-Function-Error-Type: ' + String(this._failure.errorType).replace(/[^\x20-\x7e]/g, ' ') +
            '\r\nLambda-Runtime-Function-Error-Body: ' + Buffer.from(JSON.stringify(this._failure)).toString('base64') + '\r\n';
        }
        if (!this._socket.destroyed) this._socket.write('0\r\n' + trailers + '\r\n', 'latin1');
        callback();
      }

      fail(e) {
        this._failure = describe(e).body;
        this._onBeforeFirstWrite = undefined;
        if (!this.writableEnded) this.end();
      }
    };
  }
  return new ResponseStream(highWaterMark ? { highWaterMark } : undefined);
}

const HttpResponseStream = {
  from(stream, metadata) {
    stream.setContentType(HTTP_INTEGRATION);
    stream._onBeforeFirstWrite = (write) => {
      write(JSON.stringify(metadata));
      write(Buffer.alloc(8));
    };
    return stream;
  },
};

function setUpGlobal() {
  const off = process.env.AWS_LAMBDA_NODEJS_NO_GLOBAL_AWSLAMBDA;
  if (off === '1' || off === 'true') return;
  const lambda = {
    ...globalThis.awslambda,
    streamifyResponse(handler, options) {
      handler[STREAMING] = 'response';
      if (options && options.highWaterMark !== undefined) handler[HIGH_WATER_MARK] = parseInt(options.highWaterMark, 10);
      return handler;
    },
    HttpResponseStream,
  };
  if (generation === 4) lambda.InvokeStore = new InvokeStore();
  globalThis.awslambda = lambda;
}

// What functions keep for one invocation.
class InvokeStore {
  constructor() {
    this.PROTECTED_KEYS = { REQUEST_ID: Symbol('REQUEST_ID'), X_RAY_TRACE_ID: Symbol('X_RAY_TRACE_ID'), TENANT_ID: Symbol('TENANT_ID') };
    this.context = undefined;
  }
  run(context, fn) { this.context = context; return fn(); }
  getContext() { return this.context; }
  hasContext() { return this.context !== undefined; }
  get(key) { return this.context === undefined ? undefined : this.context[key]; }
  set(key, value) {
    if (Object.values(this.PROTECTED_KEYS).includes(key)) throw new Error('Cannot modify protected Lambda context field: ' + String(key));
    if (this.context !== undefined) this.context[key] = value;
  }
  getRequestId() { return this.get(this.PROTECTED_KEYS.REQUEST_ID) ?? '-'; }
  getXRayTraceId() { return this.get(this.PROTECTED_KEYS.X_RAY_TRACE_ID); }
  getTenantId() { return this.get(this.PROTECTED_KEYS.TENANT_ID); }
}

// ---------------------------------------------------------------- the handler

// ES modules find layers along NODE_PATH on Lambda, which plain Node.js never does.
function setUpImports() {
  const dirs = (process.env.NODE_PATH || '').split(':').filter((d) => {
    if (d === '' || d === __dirname || d === process.env.LAMBDA_TASK_ROOT) return false;
    try {
      return fs.readdirSync(d).length > 0;
    } catch {
      return false;
    }
  });
  if (dirs.length === 0) return;
  const parents = dirs.map((d) => url.pathToFileURL(path.basename(d) === 'node_modules' ? path.join(path.dirname(d), 'x.mjs') : path.join(d, 'x.mjs')).href);
  if (typeof nodeModule.registerHooks === 'function') {
    nodeModule.registerHooks({
      resolve(specifier, context, next) {
        try {
          return next(specifier, context);
        } catch (err) {
          if (err.code !== 'ERR_MODULE_NOT_FOUND' || !/^(?:@[^/]+\/)?[^./#:][^:]*$/.test(specifier)) throw err;
          for (const parentURL of parents) {
            try {
              return next(specifier, { ...context, parentURL });
            } catch { /* the next one */ }
          }
          throw err;
        }
      },
    });
    return;
  }
  if (typeof nodeModule.register === 'function') nodeModule.register('./resolve.mjs', url.pathToFileURL(__filename), { data: parents });
}

async function loadHandler(root, name) {
  if (name.includes('..')) {
    throw new Fault('Runtime.MalformedHandlerName', `'${name}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`);
  }
  const base = path.basename(name);
  const dir = name.slice(0, name.length - base.length);
  const m = /^([^.]*)\.(.*)$/.exec(base);
  if (m === null) throw new Fault('Runtime.MalformedHandlerName', 'Bad handler');
  const module = await loadModule(root, dir, m[1]);
  let handler = find(module, m[2]);
  if (handler === undefined && generation === 4 && module && module.default) handler = find(module.default, m[2]);
  if (handler === undefined || handler === null) throw new Fault('Runtime.HandlerNotFound', `${name} is undefined or not exported`);
  if (typeof handler !== 'function') throw new Fault('Runtime.HandlerNotFound', `${name} is not a function`);
  const streaming = handler[STREAMING];
  if (streaming !== undefined && streaming !== 'response') throw new Fault('MalformedStreamingHandler', 'Only response streaming is supported.');
  if (generation === 4 && streaming === undefined && handler.length >= 3) {
    throw new Fault('Runtime.CallbackHandlerDeprecated', 'ERROR: AWS Lambda has removed support for callback-based function handlers starting with Node.js 24. You need to modify this function to use a supported handler signature to use Node.js 24 or later. For more information see https://docs.aws.amazon.com/lambda/latest/dg/nodejs-handler.html.');
  }
  return handler;
}

function find(module, property) {
  return property.split('.').reduce((o, p) => (o === undefined || o === null ? undefined : o[p]), module);
}

async function loadModule(root, dir, name) {
  const whole = path.resolve(root, dir, name);
  try {
    if (isFile(whole)) return require(whole);
    if (isFile(whole + '.js')) return isESM(whole + '.js') ? await importFile(whole + '.js') : require(whole + '.js');
    if (isFile(whole + '.mjs')) return await importFile(whole + '.mjs');
    if (isFile(whole + '.cjs')) return require(whole + '.cjs');
    const file = resolveFrom(root, path.join(dir, name));
    if (file === null) {
      throw Object.assign(new Error(`Cannot find module '${name}'\nRequire stack:\n- ${path.join(__dirname, 'index.mjs')}`), { code: 'MODULE_NOT_FOUND' });
    }
    return require(file);
  } catch (e) {
    throw worded(e);
  }
}

// A folder's index or main below root, or a package in node_modules or along
// NODE_PATH.
function resolveFrom(root, name) {
  for (const n of [path.resolve(root, name), name]) {
    try {
      return require.resolve(n, { paths: [root] });
    } catch (e) {
      if (e.code !== 'MODULE_NOT_FOUND') throw e;
    }
  }
  return null;
}

// The error that a failed load is told as.
function worded(e) {
  if (e instanceof SyntaxError) return new Fault('Runtime.UserCodeSyntaxError', String(e), e.stack);
  if (e && e.code === 'MODULE_NOT_FOUND') return new Fault('Runtime.ImportModuleError', String(e));
  if (e && e.code === 'ERR_DLOPEN_FAILED') return compiled(e);
  return e;
}

// A compiled module was made for another Node.js: both versions and the way out.
function compiled(e) {
  const asked = /^AWS_Lambda_(nodejs\d+\.x)$/.exec(process.env.AWS_EXECUTION_ENV || '');
  const name = asked ? asked[1] : 'nodejs' + process.versions.node.split('.')[0] + '.x';
  e.message += `\nThe function's runtime is ${name} and this host ran it on Node.js ${process.versions.node} (module version ${process.versions.modules}). ` +
    `A module with compiled parts must fit it: install that Node.js on the host, or run: lambdad runtime add ${name} --image IMAGE`;
  return e;
}

function isFile(file) {
  try {
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

function importFile(file) {
  return import(url.pathToFileURL(file).href);
}

// Whether the nearest package.json makes a .js file an ES module; the search ends
// at a node_modules folder.
function isESM(file) {
  for (let dir = path.dirname(file); path.basename(dir) !== 'node_modules'; dir = path.dirname(dir)) {
    let content;
    try {
      content = fs.readFileSync(path.join(dir, 'package.json'), 'utf8');
    } catch {
      if (dir === path.dirname(dir)) return false;
      continue;
    }
    try {
      return JSON.parse(content).type === 'module';
    } catch {
      return false;
    }
  }
  return false;
}

// ---------------------------------------------------------------- the loop

function makeContext(headers) {
  const env = process.env;
  const deadline = +headers['lambda-runtime-deadline-ms'];
  const context = {
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: member(headers['lambda-runtime-client-context'], 'ClientContext'),
    identity: member(headers['lambda-runtime-cognito-identity'], 'CognitoIdentity'),
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    getRemainingTimeInMillis: () => deadline - Date.now(),
  };
  if (generation === 4) context.xRayTraceId = headers['lambda-runtime-trace-id'];
  return context;
}

function member(json, what) {
  if (!json) return undefined;
  try {
    return JSON.parse(json);
  } catch (e) {
    throw new Error(`Cannot parse ${what} as json: ${e}`);
  }
}

// The text of a result.
function stringify(value) {
  if (typeof value === 'function' || typeof value === 'symbol') throw new TypeError('Wrong arguments');
  try {
    const body = JSON.stringify(value === undefined ? null : value);
    return body === undefined ? 'null' : body;
  } catch {
    if (generation === 4) throw new Fault('Runtime.JSONStringifyError', 'Unable to stringify response body');
    throw new Error('Unable to stringify response body');
  }
}

function isThenable(v) {
  return v !== null && v !== undefined && typeof v.then === 'function';
}

// Calls a handler; resolves to its result. Generation 4: what it returns.
async function call4(handler, event, context) {
  return handler(event, context);
}

// Generation 3: callbacks, the methods of the context, and an answer that waits
// for an empty event loop unless the function says otherwise.
function call3(handler, event, context, invocation) {
  return new Promise((resolve, reject) => {
    let over = false; // somebody has completed it
    const complete = (err, result) => {
      over = true;
      invocation.onEmpty = null;
      if (err === undefined || err === null) resolve(result);
      else reject(err);
    };
    const failed = (err) => complete(err === undefined || err === null ? 'handled' : err);
    const async = Object.prototype.toString.call(handler) === '[object AsyncFunction]';
    invocation.onEmpty = () => {
      if (async) {
        complete(new Fault('Runtime.NodeJsExit', 'The Lambda runtime client detected an unexpected Node.js exit code. This is most commonly caused by a Promise that was never settled. For more information, see https://nodejs.org/docs/latest/api/process.html#exit-codes'));
      } else {
        complete(null, undefined);
      }
    };
    let waits = true;
    Object.defineProperty(context, 'callbackWaitsForEmptyEventLoop', { enumerable: true, configurable: true, get: () => waits, set: (v) => { waits = v; } });
    context.succeed = (result) => { if (!over) complete(null, result); };
    context.fail = (err) => { if (!over) failed(err); };
    context.done = (err, result) => { if (!over) complete(err, result); };
    const callback = (err, result) => {
      if (over) return;
      over = true;
      if (waits) invocation.onEmpty = () => complete(err, result);
      else complete(err, result);
    };
    let returned;
    try {
      returned = handler(event, context, callback);
    } catch (err) {
      if (!over) complete(err, undefined);
      return;
    }
    if (isThenable(returned)) {
      returned.then((result) => { if (!over) complete(null, result); }, (err) => { if (!over) failed(err); });
    }
  });
}

// One invocation, from the event to the posted answer.
async function invoke(client, handler, answer) {
  const id = requestId;
  try {
    const event = JSON.parse(answer.body.toString());
    const context = makeContext(answer.headers);
    if (handler[STREAMING] !== undefined) {
      await stream(client, handler, event, context);
      return;
    }
    const result = generation === 4 ? await call4(handler, event, context) : await call3(handler, event, context, current);
    const body = stringify(result);
    current = null;
    await client.postResponse(id, body);
  } catch (err) {
    if (err instanceof RuntimeAPIError) throw err;
    current = null;
    logError('Invoke Error', err);
    await client.postError(id, describe(err));
  }
}

// The Runtime API does not answer as it should: the client's end.
class RuntimeAPIError extends Error {}

async function stream(client, handler, event, context) {
  const out = makeResponseStream(client, requestId, handler[HIGH_WATER_MARK]);
  // The function that has not ended its stream is not done, however empty the loop.
  const alive = setInterval(() => {}, 1 << 30);
  try {
    if (generation === 3) Object.assign(context, { callbackWaitsForEmptyEventLoop: true });
    const returned = handler(event, out, context);
    if (isThenable(returned)) {
      if ((await returned) !== undefined) console.warn('Streaming handlers ignore return values.');
    } else if (!out.writableEnded) {
      throw streamingFault('Streaming does not support non-async handlers.');
    }
  } catch (err) {
    logError('Invoke Error', err);
    out.fail(err);
  }
  try {
    await out.answered;
  } catch (err) {
    throw new RuntimeAPIError(err.message);
  } finally {
    clearInterval(alive);
    current = null;
  }
}

// What ends a process of generation 3 that nobody handles: it is posted first.
function setUpFaults(client) {
  let ending = false;
  const end = async (title, err, code) => {
    if (ending) return;
    ending = true;
    logError(title, err);
    try {
      if (current !== null) await client.postError(current.id, describe(err), new Connection(client.address));
      else if (!serving) await client.postInitError(describe(err));
    } catch { /* the exit says enough */ }
    process.exit(code);
  };
  process.on('uncaughtException', (err) => { end('Uncaught Exception', err, 129); });
  process.on('unhandledRejection', (reason) => {
    end('Unhandled Promise Rejection', new Fault('Runtime.UnhandledPromiseRejection', String(reason), isError(reason) ? 'Runtime.UnhandledPromiseRejection: ' + reason.stack : undefined), 128);
  });
}

let serving = false; // init is over

async function main() {
  setUpConsole();
  setUpGlobal();
  const env = process.env;
  const client = new Client(env.AWS_LAMBDA_RUNTIME_API);
  if (generation === 3) setUpFaults(client);
  const beforeExit = () => {
    if (current !== null && current.onEmpty) current.onEmpty();
    else if (!serving && generation === 3) process.exitCode = 13;
  };
  process.on('beforeExit', beforeExit);
  let handler;
  try {
    setUpImports();
    handler = await loadHandler(env.LAMBDA_TASK_ROOT || '/var/task', process.argv[2] || env._HANDLER || '');
  } catch (err) {
    logError(generation === 3 ? 'Uncaught Exception' : 'Init Error', err);
    try {
      await client.postInitError(describe(err));
    } catch { /* the exit says enough */ }
    if (generation === 4) writeAll(2, Buffer.from(util.inspect(err) + '\n'));
    process.exit(generation === 3 ? 129 : 1);
  }
  serving = true;
  const store = globalThis.awslambda && globalThis.awslambda.InvokeStore;
  try {
    for (;;) {
      const answer = await client.next();
      const headers = answer.headers;
      requestId = headers['lambda-runtime-aws-request-id'];
      tenantId = headers['lambda-runtime-aws-tenant-id'];
      traceId = headers['lambda-runtime-trace-id'];
      if (traceId) env._X_AMZN_TRACE_ID = traceId;
      else delete env._X_AMZN_TRACE_ID;
      if (generation === 4 && store) {
        store.context = { [store.PROTECTED_KEYS.REQUEST_ID]: requestId, [store.PROTECTED_KEYS.X_RAY_TRACE_ID]: traceId, [store.PROTECTED_KEYS.TENANT_ID]: tenantId };
      }
      current = { id: requestId, onEmpty: null };
      await invoke(client, handler, answer);
      current = null;
    }
  } catch (err) {
    writeAll(2, Buffer.from('the Node.js runtime client cannot go on: ' + util.inspect(err) + '\n'));
    process.exit(1);
  }
}

if (require.main === module) {
  if (process.env.AWS_LAMBDA_RUNTIME_API) main();
  else process.exitCode = NOTHING_TO_ASK;
} else {
  module.exports = { main };
}
