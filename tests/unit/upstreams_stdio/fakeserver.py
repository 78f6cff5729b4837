"""A server with every bad habit, by argument and by method. Standard library only; run as a program."""

import json
import os
import signal
import subprocess
import sys
import time

HABITS = set(sys.argv[1:])


def say(message):
    sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def answer(request, result):
    say({"jsonrpc": "2.0", "id": request["id"], "result": result})


def grandchild():
    """One that holds our pipes and does not care about signals that can be ignored (from now on: it says so first)."""
    deaf, say = os.pipe()
    code = (
        "import os,signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('', flush=True); "
        f"os.write({say}, b'.'); os.close({say}); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-S", "-c", code], pass_fds=[say])
    os.close(say)
    os.read(deaf, 1)
    os.close(deaf)
    return child.pid


def open_files():
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd"))


def do(request):
    method = request.get("method")
    params = request.get("params") or {}
    if "id" not in request:
        return
    if method == "echo":
        answer(request, params)
    elif method == "who":
        answer(request, {"pid": os.getpid(), "argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)})
    elif method == "files":
        answer(request, {"files": open_files(), "sid": os.getsid(0)})
    elif method == "crash":
        sys.stderr.write("Traceback: it all went wrong\n")
        sys.stderr.flush()
        os._exit(7)
    elif method == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif method == "last words":
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {"said": "at the end"}}))
        sys.stdout.flush()
        os._exit(0)
    elif method == "grandchild":
        answer(request, {"pid": grandchild()})
    elif method == "flood stderr":
        for number in range(params["lines"]):
            sys.stderr.write(f"line {number} " + "x" * 90 + "\n")
        sys.stderr.flush()
        answer(request, {})
    elif method == "write":
        sys.stdout.buffer.write(params["text"].encode("latin-1"))
        sys.stdout.buffer.flush()
        answer(request, {})
    elif method == "pieces":
        for piece in params["pieces"]:
            sys.stdout.write(piece)
            sys.stdout.flush()
            time.sleep(0.02)
    elif method == "write stderr":
        sys.stderr.buffer.write(params["text"].encode("latin-1"))
        sys.stderr.buffer.flush()
        answer(request, {})
    elif method == "huge line":
        say({"jsonrpc": "2.0", "id": request["id"], "result": {"text": "y" * params["size"]}})
    elif method == "sleep":
        time.sleep(params["seconds"])
        answer(request, {})


if "dies at start" in HABITS:
    sys.stderr.write("cannot find the configuration\n")
    sys.exit(3)
if "ignores SIGTERM" in HABITS:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "never reads" in HABITS:
    time.sleep(600)
for line in sys.stdin:
    do(json.loads(line))
if "ignores the end of stdin" in HABITS:
    time.sleep(600)
