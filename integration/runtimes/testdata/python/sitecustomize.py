"""An internal extension: it lives in the runtime's process and began before it."""
import http.client
import json
import os
import signal
import threading

NAME = os.environ.get("HOOK_NAME", "hook")
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])


def call(method, path, body=None, headers={}):
    api.request(method, "/2020-01-01/extension/" + path, body, headers)
    answer = api.getresponse()
    return answer, answer.read()


answer, _ = call("POST", "register", json.dumps({"events": ["INVOKE"]}), {"Lambda-Extension-Name": NAME})
identifier = answer.getheader("Lambda-Extension-Identifier")


def loop():
    # The main thread runs Python's handlers: it must be the one that is interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        _, body = call("GET", "event/next", None, {"Lambda-Extension-Identifier": identifier})
        os.write(1, b"hook: %s\n" % json.loads(body)["eventType"].encode())


def end(*_):
    os.write(1, b"hook: SIGTERM\n")
    os._exit(0)


signal.signal(signal.SIGTERM, end)
threading.Thread(target=loop, daemon=True).start()
