// An internal extension: it lives in the runtime's process and began before it. A
// thread asks for events; what is loaded waits until it is registered.
const { Worker, isMainThread, workerData } = require('worker_threads');

if (isMainThread) {
  const registered = new Int32Array(new SharedArrayBuffer(4));
  new Worker(__filename, { workerData: registered, execArgv: [], env: { ...process.env, NODE_OPTIONS: '' } }).unref();
  Atomics.wait(registered, 0, 0, 8000);
  process.on('SIGTERM', () => {
    process.stdout.write('hook: SIGTERM\n');
    process.exit(0);
  });
} else {
  const http = require('http');
  const fs = require('fs');
  const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');
  const agent = new http.Agent({ keepAlive: true });
  const call = (method, path, headers, body) => new Promise((resolve, reject) => {
    const req = http.request({ host, port, method, path: '/2020-01-01/extension/' + path, headers, agent }, (res) => {
      let text = '';
      res.on('data', (d) => { text += d; });
      res.on('end', () => resolve({ headers: res.headers, text }));
    });
    req.on('error', reject);
    req.end(body);
  });
  (async () => {
    const answer = await call('POST', 'register', { 'Lambda-Extension-Name': process.env.HOOK_NAME || 'hook' }, JSON.stringify({ events: ['INVOKE'] }));
    Atomics.store(workerData, 0, 1);
    Atomics.notify(workerData, 0);
    for (;;) {
      const next = await call('GET', 'event/next', { 'Lambda-Extension-Identifier': answer.headers['lambda-extension-identifier'] });
      fs.writeSync(1, 'hook: ' + JSON.parse(next.text).eventType + '\n');
    }
  })();
}
