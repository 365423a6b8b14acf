"""The Python runtime client of lambdad.

It asks the Runtime API for events, calls the function's handler and posts what
comes back, as AWS's Python runtimes do (runtimes.md section 2). It imports next
to nothing, because every import delays every cold start: the Runtime API is
spoken over a bare socket, JSON goes through the interpreter's own accelerator,
and logging is set up when somebody imports it.

Functions here are looked up by name at each call: monitoring agents replace
handle_event_request and the methods of LambdaRuntimeClient.
"""

import marshal
import os
import sys
import time

try:
    from _socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, socket
except ImportError:
    from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, socket

CLIENT_VERSION = "1.0.0"
API = "/2018-06-01/runtime/"

# An X-Ray cause above this is left out: it travels in a header.
MAX_CAUSE = 64 << 10

HERE = os.path.dirname(os.path.abspath(__file__))


def runtime_version():
    """Version that the function asked for, as (3, 12); it decides where AWS's
    runtimes differ. It may not be the interpreter's own."""
    name = os.environ.get("AWS_EXECUTION_ENV", "")
    if name.startswith("AWS_Lambda_python3."):
        try:
            return 3, int(name[len("AWS_Lambda_python3."):])
        except ValueError:
            pass
    return tuple(sys.version_info[:2])


# ---------------------------------------------------------------- JSON


class _ScanRules:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {
        "NaN": float("nan"),
        "Infinity": float("inf"),
        "-Infinity": float("-inf"),
    }.__getitem__
    memo = {}


try:
    import _json

    _scan = _json.make_scanner(_ScanRules)

    def _encode(value, ascii_only, default):
        escape = _json.encode_basestring_ascii if ascii_only else _json.encode_basestring
        encoder = _json.make_encoder({}, default, escape, None, ": ", ", ", False, False, True)
        return "".join(encoder(value, 0))

    # The accelerator is the interpreter's own business: check that it is as known.
    if _scan('{"a": [1.5]}', 0) != ({"a": [1.5]}, 12):
        raise ImportError("unknown scanner")
    if _encode({"a": [None, "\u00e9"]}, True, None) != '{"a": [null, "\\u00e9"]}':
        raise ImportError("unknown encoder")
except Exception:
    _scan = None

    def _encode(value, ascii_only, default):
        import json

        return json.dumps(value, ensure_ascii=ascii_only, default=default)


def parse_json(text):
    """Value of a JSON text; ValueError words what is wrong as json.loads does."""
    if _scan is not None:
        stripped = text.strip(" \t\n\r")
        try:
            value, end = _scan(stripped, 0)
            if end == len(stripped):
                return value
        except (StopIteration, ValueError, SystemError):
            pass  # the scanner itself, asked without json, cannot word its errors
    import json

    return json.loads(text)


def _refuse(value):
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


def to_json(value, ascii_only):
    """JSON text of a result, by the rules of simplejson, which AWS's client uses:
    Decimals keep their digits, named tuples are objects, bytes are text."""
    try:
        # Succeeds for the exact built-in types only, and much faster than a look
        # at each value from here.
        marshal.dumps(value, 2)
        return _encode(value, ascii_only, _refuse)
    except (TypeError, ValueError):
        pass
    quote = os.urandom(16).hex()
    text = _encode(_plain(value, {}, quote), ascii_only, _refuse)
    return text.replace('"' + quote, "").replace(quote + '"', "")


def _plain(value, parents, quote):
    """value with everything that JSON encoders do not know replaced. Numbers that
    keep their digits become strings between two marks, taken off afterwards."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return quote + str(value) + quote
    as_list = isinstance(value, list)
    as_dict = None
    if not as_list:
        as_dict = getattr(value, "_asdict", None)
        if not callable(as_dict):
            as_dict = None
            if not isinstance(value, (dict, tuple)):
                _refuse(value)
    mark = id(value)
    if mark in parents:
        raise ValueError("Circular reference detected")
    parents[mark] = True
    members = as_dict() if as_dict is not None else value
    if isinstance(members, dict):
        plain = {_plain_key(k, decimal): _plain(v, parents, quote) for k, v in members.items()}
    else:
        plain = [_plain(v, parents, quote) for v in members]
    del parents[mark]
    return plain


def _plain_key(key, decimal):
    if key is None or isinstance(key, (str, int, float)):
        return key
    if isinstance(key, bytes):
        return key.decode("utf-8")
    if decimal is not None and isinstance(key, decimal.Decimal):
        return str(key)
    raise TypeError("keys must be str, int, float, bool or None, not " + type(key).__name__)


# ---------------------------------------------------------------- Runtime API


class _Connection:
    """One connection to the Runtime API, kept alive. No timeouts: the process is
    frozen while it waits for an event."""

    def __init__(self, address):
        self.address = address
        host, _, port = address.rpartition(":")
        if not host:
            host, port = port, "80"
        self.family = AF_INET6 if host.startswith("[") else AF_INET
        self.target = host.strip("[]"), int(port)
        self.sock = None
        self.rest = b""

    def request(self, head, body=b""):
        """Sends a request and returns status, headers (lower case) and body."""
        reused = self.sock is not None
        while True:
            try:
                if self.sock is None:
                    self._open()
                self._send(head, body)
                first = self._receive()
                break
            except OSError:
                self.close()
                # The other side may close a connection that has been idle, also
                # between our last look and this request; then once more.
                if not reused:
                    raise
                reused = False
        try:
            return self._response(first)
        except BaseException:
            self.close()
            raise

    def _open(self):
        sock = socket(self.family)
        try:
            sock.connect(self.target)
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    def close(self):
        sock, self.sock, self.rest = self.sock, None, b""
        if sock is not None:
            sock.close()

    def _send(self, head, body):
        if len(body) <= 65536:
            self.sock.sendall(head + body)
        else:
            self.sock.sendall(head)
            self.sock.sendall(body)

    def _receive(self):
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("the Runtime API closed the connection")
        return data

    def _response(self, data):
        status = 100
        while status // 100 == 1:
            while True:
                end = data.find(b"\r\n\r\n")
                if end >= 0:
                    break
                data += self._receive()
            lines = data[:end].split(b"\r\n")
            data = data[end + 4:]
            protocol, _, code = lines[0].partition(b" ")
            if not protocol.startswith(b"HTTP/1.") or not code[:3].isdigit():
                raise OSError("the Runtime API answered with something that is not HTTP/1.1: %r" % lines[0][:80])
            status = int(code[:3])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.strip().lower().decode("latin-1")] = _text(value.strip())
        keep = headers.get("connection", "").lower() != "close" and protocol != b"HTTP/1.0"
        if status in (204, 304):
            body, data = b"", data
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            body, data = self._chunks(data)
        elif "content-length" in headers:
            body, data = self._exactly(data, int(headers["content-length"]))
        else:
            body, data, keep = self._all(data), b"", False
        if not keep or data:
            self.close()
        return status, headers, body

    def _exactly(self, data, length):
        if len(data) >= length:
            return data[:length], data[length:]
        body = bytearray(length)
        view = memoryview(body)
        view[:len(data)] = data
        have = len(data)
        while have < length:
            n = self.sock.recv_into(view[have:])
            if n == 0:
                raise ConnectionResetError("the Runtime API closed the connection in the middle of an answer")
            have += n
        view.release()
        return bytes(body), b""

    def _line(self, data):
        while True:
            end = data.find(b"\r\n")
            if end >= 0:
                return data[:end], data[end + 2:]
            data += self._receive()

    def _chunks(self, data):
        parts = []
        while True:
            line, data = self._line(data)
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            part, data = self._exactly(data, size)
            parts.append(part)
            line, data = self._line(data)
        while line:
            line, data = self._line(data)  # trailers, up to an empty line
        return b"".join(parts), data

    def _all(self, data):
        parts = [data]
        while True:
            data = self.sock.recv(65536)
            if not data:
                return b"".join(parts)
            parts.append(data)


def _text(raw):
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


class LambdaRuntimeClient:
    """The four calls of the Runtime API that a function needs."""

    def __init__(self, address):
        self.connection = _Connection(address)
        self.common = "HTTP/1.1\r\nHost: %s\r\nUser-Agent: aws-lambda-python/%d.%d.%d-%s\r\n" % (
            (address,) + tuple(sys.version_info[:3]) + (CLIENT_VERSION,)
        )
        self.next = ("GET " + API + "invocation/next " + self.common + "\r\n").encode("ascii")

    def wait_next_invocation(self):
        """Waits for an event; returns the answer's headers and body."""
        status, headers, body = self.connection.request(self.next)
        if status != 200:
            raise RuntimeError("GET invocation/next: the Runtime API answered %d: %r" % (status, body[:200]))
        return headers, body

    def post_invocation_result(self, invoke_id, body, content_type):
        # An answer that is too large has been replaced by the platform: go on.
        self._post("invocation/" + invoke_id + "/response", body, "Content-Type: " + content_type + "\r\n", (202, 413))

    def post_invocation_error(self, invoke_id, body, cause):
        headers = "Content-Type: application/json\r\n"
        if cause and len(cause) <= MAX_CAUSE:
            headers += "Lambda-Runtime-Function-XRay-Error-Cause: " + cause + "\r\n"
        self._post("invocation/" + invoke_id + "/error", body, headers, (202, 413))

    def post_init_error(self, error, error_type=None):
        error_type = error_type or error["errorType"]
        self._post("init/error", _error_body(error), "Lambda-Runtime-Function-Error-Type: " + _header(error_type) + "\r\n", (202,))

    def _post(self, path, body, headers, accepted):
        head = "POST " + API + path + " " + self.common + headers + "Content-Length: %d\r\n\r\n" % len(body)
        status, _, answer = self.connection.request(head.encode("latin-1", "replace"), body)
        if status not in accepted:
            raise RuntimeError("POST %s: the Runtime API answered %d: %r" % (path, status, answer[:200]))


def _header(text):
    return text.replace("\r", " ").replace("\n", " ")


# ---------------------------------------------------------------- errors


class Fault(Exception):
    """A failure that is the client's to word, not the function's."""

    def __init__(self, kind, message, trace=None):
        Exception.__init__(self, message)
        self.kind = kind
        self.message = message
        self.trace = trace or []


def _error(message, kind, trace, invoke_id):
    error = {"errorMessage": message, "errorType": kind}
    if runtime_version() >= (3, 9):
        error["requestId"] = invoke_id
    error["stackTrace"] = trace
    return error


def _error_body(error):
    try:
        return _encode(error, runtime_version() < (3, 12), _refuse).encode("utf-8")
    except UnicodeEncodeError:
        return _encode(error, True, _refuse).encode("ascii")


def _frames(trace):
    """Frames of a traceback from the first that is not ours, as tuples: the
    traceback module then prints them without position marks."""
    import traceback

    frames = [(f.filename, f.lineno, f.name, f.line) for f in traceback.extract_tb(trace)]
    ours = __file__, os.path.join(HERE, "lambdad_runtime.py")
    while frames and frames[0][0] in ours:
        del frames[0]
    return frames


def _cause(message, kind, frames):
    """What X-Ray shows, as one line of ASCII."""
    directory = os.getcwd()
    exception = {
        "message": message,
        "type": kind,
        "stack": [{"label": f[2], "path": f[0], "line": f[1]} for f in frames],
    }
    cause = {
        "working_directory": directory,
        "exceptions": [exception],
        "paths": list({f[0]: None for f in frames}),
    }
    return _encode(cause, True, _refuse)


def _describe(kind, value, trace, invoke_id):
    """Error body and X-Ray frames of an exception that a function raised."""
    import traceback

    frames = _frames(trace)
    return _error(str(value), kind.__name__, traceback.format_list(frames), invoke_id), frames


# ---------------------------------------------------------------- logging

LEVELS = {"TRACE": 1, "DEBUG": 2, "INFO": 3, "WARN": 4, "WARNING": 4, "ERROR": 5, "FATAL": 6, "CRITICAL": 6}

# State of this process's one function.
invocation = {"request_id": "", "tenant_id": None}
sink = None


class StandardSink:
    """Log records as lines of standard output."""

    def log(self, text, level=None, json=False):
        out = sys.stdout
        try:
            out.write(text)
        except UnicodeEncodeError:
            encoding = out.encoding or "ascii"
            out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()

    def error(self, lines):
        # One record is one line: what reads this splits at line feeds.
        self.log("\r".join(lines) + "\n")

    def json_error(self, text):
        self.log(text + "\n")


class FramedSink:
    """Log records on a descriptor of their own, each with its length (traps.md
    section 5), so that a record may have several lines."""

    def __init__(self, fd):
        self.fd = fd

    def log(self, text, level=None, json=False):
        data = text.encode("utf-8", "backslashreplace")
        kind = (0xA55A0002 if json else 0xA55A0003) | LEVELS.get(level, 0) << 2
        frame = (
            kind.to_bytes(4, "big")
            + len(data).to_bytes(4, "big")
            + (time.time_ns() // 1000).to_bytes(8, "big")
            + data
        )
        while frame:
            frame = frame[os.write(self.fd, frame):]

    def error(self, lines):
        self.log("\n".join(lines), "ERROR")

    def json_error(self, text):
        self.log(text, "ERROR", True)


def _open_sink():
    fd = os.environ.pop("_LAMBDA_TELEMETRY_LOG_FD", None)
    if fd is None:
        return StandardSink()
    try:
        os.set_inheritable(int(fd), False)
        return FramedSink(int(fd))
    except (ValueError, OSError):
        return StandardSink()


def _json_logs():
    return os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"


def _log_error(error):
    """The runtime's own record of a failed invocation or init."""
    if _json_logs():
        record = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "log_level": "ERROR"}
        record.update(error)
        sink.json_error(_encode(record, False, str))
        return
    first = "[ERROR] " + error["errorType"]
    if error["errorMessage"]:
        first += ": " + error["errorMessage"]
    lines = [first, "Traceback (most recent call last):"]
    for item in error["stackTrace"]:
        for line in item.splitlines():
            text = line.lstrip(" ")
            # Log viewers strip ordinary blanks.
            lines.append("\u00a0" * (len(line) - len(text)) + text)
    sink.error(lines)


class _LoggingHook:
    """Imports logging when somebody asks for it and sets it up at once, so that
    functions without it do not pay for it. As AWS's client has imported it before
    any function, a function's own logging.py never counts."""

    def __init__(self):
        self.path = list(sys.path)

    def find_spec(self, name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        finder = sys.modules["_frozen_importlib_external"].PathFinder
        spec = finder.find_spec(name, [p for p in self.path if p != HERE])
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_set_up(module):
            execute(module)
            set_up_logging(module)

        spec.loader.exec_module = execute_and_set_up
        return spec


def set_up_logging(logging):
    """Gives the root logger AWS's handler, format and level."""

    class Handler(logging.Handler):
        def emit(self, record):
            try:
                sink.log(self.format(record), record.levelname, isinstance(self.formatter, JSONFormatter))
            except Exception:
                self.handleError(record)

    class Filter(logging.Filter):
        def filter(self, record):
            record.aws_request_id = invocation["request_id"]
            record.tenant_id = invocation["tenant_id"]
            return True

    class JSONFormatter(logging.Formatter):
        converter = staticmethod(time.gmtime)
        standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "aws_request_id", "tenant_id", "taskName"}

        def format(self, record):
            members = {
                "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
                "level": record.levelname,
                "message": record.getMessage(),
                "logger": record.name,
            }
            failed = record.exc_info if record.exc_info and record.exc_info[0] else None
            if failed:
                import traceback

                members["stackTrace"] = traceback.format_list(
                    [(f.filename, f.lineno, f.name, f.line) for f in traceback.extract_tb(failed[2])]
                )
                members["errorType"] = failed[0].__name__
                members["errorMessage"] = str(failed[1])
            members["requestId"] = record.aws_request_id
            if failed:
                members["location"] = "%s:%s:%d" % (record.pathname, record.funcName, record.lineno)
            if record.tenant_id is not None:
                members["tenantId"] = record.tenant_id
            for name, value in vars(record).items():
                if name not in self.standard and name not in members and value is not None:
                    members[name] = value
            try:
                return _encode(members, False, str) + "\n"
            except (TypeError, ValueError):
                return _encode({k: str(v) for k, v in members.items()}, False, str) + "\n"

    handler = Handler()
    if _json_logs():
        handler.setFormatter(JSONFormatter())
    else:
        formatter = logging.Formatter(
            "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n", "%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    handler.addFilter(Filter())
    logging.root.addHandler(handler)
    wanted = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    names = {"TRACE": "DEBUG", "WARN": "WARNING", "FATAL": "CRITICAL"}
    wanted = names.get(wanted, wanted)
    if wanted in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        logging.root.setLevel(wanted)


# ---------------------------------------------------------------- context


class _Members:
    """An object with the members of a JSON object; those it lacks are None."""

    _names = ()

    def __init__(self, values):
        for name in self._names:
            setattr(self, name, values.get(name))

    def __repr__(self):
        return type(self).__name__ + "([" + ",".join("%s=%s" % (n, getattr(self, n)) for n in self._names) + "])"


class Client(_Members):
    _names = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")


class ClientContext(_Members):
    _names = ("custom", "env", "client")

    def __init__(self, values):
        _Members.__init__(self, values)
        if self.client is not None:
            self.client = Client(self.client)


class CognitoIdentity(_Members):
    _names = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self, values):
        self.cognito_identity_id = values.get("cognitoIdentityId")
        self.cognito_identity_pool_id = values.get("cognitoIdentityPoolId")


class LambdaContext:
    """The handler's second argument."""

    _names = (
        "aws_request_id", "log_group_name", "log_stream_name", "function_name", "memory_limit_in_mb",
        "function_version", "invoked_function_arn", "client_context", "identity", "tenant_id",
    )

    def __init__(self, headers):
        environ = os.environ
        self.aws_request_id = headers["lambda-runtime-aws-request-id"]
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.client_context = None
        values = _member_object(headers.get("lambda-runtime-client-context"), "Client Context")
        if values is not None:
            self.client_context = _build(ClientContext, values, "Client Context")
        values = _member_object(headers.get("lambda-runtime-cognito-identity"), "Cognito Identity")
        self.identity = _build(CognitoIdentity, values or {}, "Cognito Identity")
        self._deadline = int(headers.get("lambda-runtime-deadline-ms") or 0)

    def get_remaining_time_in_millis(self):
        return max(self._deadline - int(time.time() * 1000), 0)

    def log(self, msg):
        sink.log(str(msg))

    def __repr__(self):
        return "LambdaContext([" + ",".join("%s=%s" % (n, getattr(self, n)) for n in self._names) + "])"


def _member_object(text, what):
    if not text:
        return None
    try:
        return parse_json(text)
    except Exception as e:
        raise Fault("Runtime.LambdaContextUnmarshalError", "Unable to parse %s JSON: %s" % (what, e))


def _build(kind, values, what):
    try:
        return kind(values)
    except Exception as e:
        raise Fault("Runtime.LambdaContextUnmarshalError", "Unable to parse %s JSON: %s" % (what, e))


# ---------------------------------------------------------------- the loop


def set_search_path():
    """Arranges sys.path: package, layers, what comes with the runtime, library."""
    environ = os.environ
    major, minor = runtime_version()
    task = environ.get("LAMBDA_TASK_ROOT") or "/var/task"
    # Said only where paths are translated; not the function's business.
    opt = environ.pop("_LAMBDAD_OPT", "/opt")
    layers = ["%s/python/lib/python%d.%d/site-packages" % (opt, major, minor), opt + "/python"]
    own = [p for p in sys.path if os.path.abspath(p) != HERE]
    sys.path[:] = own
    site = sys.modules.get("site")
    if site is not None:
        for directory in layers:
            site.addsitedir(directory)  # honours .pth files, at the end of the path
    front = [task]
    if environ.get("PYTHONPATH", HERE) == HERE:
        front += layers  # a customer's own PYTHONPATH takes their place
    if minor >= 12:
        prefix = "/var/lang" if HERE == "/var/runtime" else sys.prefix
        front.append("%s/lib/python%d.%d/site-packages" % ((prefix,) + tuple(sys.version_info[:2])))
    sys.path[:0] = front + [HERE]


def _unbuffered(stream, fd):
    """Standard stream fd that keeps nothing back: a line must not wait in a frozen
    process."""
    import io

    if stream is None:
        return None
    try:
        encoding, errors = stream.encoding, stream.errors
        raw = stream.detach().detach()
        return io.TextIOWrapper(raw, encoding, errors, newline="\n", write_through=True)
    except (AttributeError, ValueError):
        return open(fd, "w", 1, closefd=False)


def _compiled(error):
    """What to add to the text of an import error when a compiled module was made for
    another Python: both versions and the way out."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ImportError):
            made = _made_for(error)
            if made:
                major, minor = runtime_version()
                asked = "python%d.%d" % (major, minor)
                return (
                    ". %s, the function's runtime is %s and this host ran it on Python %d.%d.%d. "
                    "Install that Python on the host, or run: lambdad runtime add %s --image IMAGE"
                    % ((made, asked) + tuple(sys.version_info[:3]) + (asked,))
                )
        error = error.__cause__ or error.__context__
    return ""


def _made_for(error):
    """Names the compiled file behind an import error and what it was made for."""
    path = getattr(error, "path", None)
    if path and path.endswith(".so"):
        return "The compiled module %s does not load" % path
    name = getattr(error, "name", None)
    if not name:
        return None
    text = str(error)
    if text.startswith("cannot import name '"):
        name += "." + text.split("'")[1]
    package, _, last = name.rpartition(".")
    for directory in [os.path.join(d, *package.split(".")) for d in sys.path]:
        try:
            files = os.listdir(directory or ".")
        except OSError:
            continue
        for file in files:
            if file.endswith(".so") and file.startswith((last + ".cpython-", last + ".abi3")):
                return "The compiled module %s is for %s" % (os.path.join(directory, file), file[len(last) + 1:-3])
    return None


def load_handler(name):
    """The function's handler; Fault when that is not to be had."""
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        raise Fault("Runtime.MalformedHandlerName", "Bad handler '%s': not enough values to unpack (expected 2, got 1)" % name)
    if module_name.split(".")[0] in sys.builtin_module_names:
        raise Fault("Runtime.BuiltInModuleConflict", "Cannot use built-in module %s as a handler module" % module_name)
    import importlib

    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as e:
        raise Fault("Runtime.ImportModuleError", "Unable to import module '%s': %s%s" % (module_name, e, _compiled(e)))
    except SyntaxError as e:
        trace = ['  File "%s" Line %s\n    %s' % (e.filename, e.lineno, e.text)]
        raise Fault("Runtime.UserCodeSyntaxError", "Syntax error in module '%s': %s" % (module_name, e), trace)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise Fault("Runtime.HandlerNotFound", "Handler '%s' missing on module '%s'" % (attribute, module_name))


def fail_init(client, error):
    """Reports that the function cannot be initialised and ends the process."""
    import logging

    logging.warning("LAMBDA_WARNING: Unhandled exception. The most likely cause is an issue in the function code.\r")
    _log_error(error)
    client.post_init_error(error)
    sys.exit(1)


def handle_event_request(client, handler, headers, body):
    """One invocation, from the event to the posted answer. What a handler raises
    is posted unless it is meant to end the process (SystemExit and its like)."""
    invoke_id = headers["lambda-runtime-aws-request-id"]
    error = None
    try:
        context = LambdaContext(headers)
        event = body
        if headers.get("content-type") == "application/json":
            try:
                event = parse_json(body.decode("utf-8"))
            except Exception as e:
                raise Fault("Runtime.UnmarshalError", "Unable to unmarshal input: %s" % e)
        result = handler(event, context)
        content_type = "application/json"
        if isinstance(result, bytes):
            content_type = "application/unknown"
        else:
            try:
                result = to_json(result, runtime_version() < (3, 12))
            except Exception as e:
                raise Fault("Runtime.MarshalError", "Unable to marshal response: %s" % e)
    except Fault as e:
        error = _error(e.message, e.kind, e.trace, invoke_id)
        cause = _cause(e.message, "LambdaValidationError", [])
    except Exception:
        kind, value, trace = sys.exc_info()
        error, frames = _describe(kind, value, trace, invoke_id)
        cause = _cause(error["errorMessage"], error["errorType"], frames)
        del value, trace, frames
    if error is not None:
        _log_error(error)
        client.post_invocation_error(invoke_id, _error_body(error), cause)
        return
    if not isinstance(result, bytes):
        result = result.encode("utf-8")
    client.post_invocation_result(invoke_id, result, content_type)


def main():
    global sink
    sys.stdout = sys.__stdout__ = _unbuffered(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _unbuffered(sys.stderr, 2)
    sink = _open_sink()
    client = LambdaRuntimeClient(os.environ["AWS_LAMBDA_RUNTIME_API"])
    if "logging" in sys.modules:
        set_up_logging(sys.modules["logging"])
    else:
        sys.meta_path.insert(0, _LoggingHook())
    set_search_path()
    name = sys.argv[1] if len(sys.argv) > 1 else os.environ["_HANDLER"]
    error = None
    try:
        handler = load_handler(name)
    except Fault as e:
        error = _error(e.message, e.kind, e.trace, "")
    except Exception:
        error, _ = _describe(*sys.exc_info(), "")
    if error is not None:
        fail_init(client, error)
    while True:
        headers, body = client.wait_next_invocation()
        invocation["request_id"] = headers.get("lambda-runtime-aws-request-id", "")
        invocation["tenant_id"] = headers.get("lambda-runtime-aws-tenant-id")
        trace = headers.get("lambda-runtime-trace-id")
        if trace:
            os.environ["_X_AMZN_TRACE_ID"] = trace
        else:
            os.environ.pop("_X_AMZN_TRACE_ID", None)
        handle_event_request(client, handler, headers, body)
        del headers, body
