// Reports what a Node.js function sees.
const fs = require('fs');

const read = (path) => fs.readFileSync(path, 'utf8');
const writable = (dir) => {
  try {
    fs.writeFileSync(dir + '/probe-file', '');
    return true;
  } catch {
    return false;
  }
};

exports.handler = async (event, context) => {
  process.stdout.write('probe: a line\n');
  console.log('probe: two\nlines');
  return {
    env: process.env,
    args: read('/proc/self/cmdline').split('\0').slice(0, -1),
    cwd: process.cwd(),
    status: read('/proc/self/status'),
    limits: read('/proc/self/limits'),
    meminfo: read('/proc/meminfo'),
    writable: Object.fromEntries(['/var/task', '/opt', '/var/runtime', '/tmp'].map((d) => [d, writable(d)])),
    event,
    remainingMs: context.getRemainingTimeInMillis(),
    context: {
      name: context.functionName, version: context.functionVersion, arn: context.invokedFunctionArn,
      memory: context.memoryLimitInMB, requestId: context.awsRequestId, group: context.logGroupName, stream: context.logStreamName,
      custom: context.clientContext ? context.clientContext.custom : null,
    },
  };
};
