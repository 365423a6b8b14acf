"""Reports what a Python function sees."""
import os
import sys


def read(path):
    with open(path) as f:
        return f.read()


def writable(directory):
    try:
        with open(directory + "/probe-file", "w"):
            return True
    except OSError:
        return False


def handler(event, context):
    # In one write: a hook in another thread writes, too.
    sys.stdout.write("probe: a line\n")
    context.log("probe: two\nlines")
    return {
        "env": dict(os.environ),
        "args": read("/proc/self/cmdline").split("\0")[:-1],
        "cwd": os.getcwd(),
        "status": read("/proc/self/status"),
        "limits": read("/proc/self/limits"),
        "meminfo": read("/proc/meminfo"),
        "writable": {d: writable(d) for d in ("/var/task", "/opt", "/var/runtime", "/tmp")},
        "event": event,
        "remainingMs": context.get_remaining_time_in_millis(),
        "context": {
            "name": context.function_name, "version": context.function_version, "arn": context.invoked_function_arn,
            "memory": context.memory_limit_in_mb, "requestId": context.aws_request_id,
            "group": context.log_group_name, "stream": context.log_stream_name,
            "custom": context.client_context.custom if context.client_context else None,
        },
    }
