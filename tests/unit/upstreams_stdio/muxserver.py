"""A server for many callers at once: answers out of order, tells of progress, asks back. Run as a program."""

import json
import os
import sys
import threading
import time

LOCK = threading.Lock()
CANCELLED = []
ANSWERS = {}
KEY = "io.modelcontextprotocol/"


def say(message):
    with LOCK:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def error(request, code, message, data=None):
    say({"id": request["id"], "error": {"code": code, "message": message, "data": data}})


def later(request, params):
    time.sleep(params.get("seconds", 0))
    meta = params.get("_meta") or {}
    if "progressToken" in meta:
        say({"method": "notifications/progress", "params": {"progressToken": meta["progressToken"], "progress": 1}})
    say({"id": request["id"], "result": {"echo": params.get("value"), "meta": meta, "pid": os.getpid()}})


def ask_back(request, params):
    say({"id": "q1", "method": params["ask"], "params": {}})
    for _ in range(200):
        if "q1" in ANSWERS:
            break
        time.sleep(0.02)
    say({"id": request["id"], "result": {"answer": ANSWERS.pop("q1", None)}})


def listen(request):
    say({"method": "notifications/tools/list_changed", "params": {"_meta": {KEY + "subscriptionId": request["id"]}}})
    time.sleep(0.05)
    say({"id": request["id"], "result": {"_meta": {KEY + "subscriptionId": request["id"]}, "resultType": "complete"}})


def serve(request):
    method, params = request.get("method"), request.get("params") or {}
    if method is None:
        ANSWERS[request["id"]] = request.get("result", request.get("error"))
    elif method == "notifications/cancelled":
        CANCELLED.append(params["requestId"])
    elif method == "notifications/hello":
        say({"method": "notifications/hello_back", "params": params})
    elif method == "echo":
        threading.Thread(target=later, args=(request, params)).start()
    elif method == "never":
        pass
    elif method == "cancelled":
        say({"id": request["id"], "result": {"ids": CANCELLED}})
    elif method == "crash":
        os._exit(9)
    elif method == "ask back":
        threading.Thread(target=ask_back, args=(request, params)).start()
    elif method == "subscriptions/listen":
        threading.Thread(target=listen, args=(request,)).start()
    elif method == "strays":
        say({"id": 999999, "result": {}})
        say({"id": None, "error": {"code": 1, "message": "?"}})
        say({"method": "notifications/progress", "params": {"progressToken": 999999, "progress": 1}})
        say({"method": "notifications/progress", "params": {"progressToken": "x", "progress": 1}})
        say({"method": "notifications/x", "params": {"_meta": {KEY + "subscriptionId": 999999}}})
        say({"method": 7})
        say({"id": request["id"], "result": {}})
    elif "id" in request:
        error(request, -32601, "Method not found")


for line in sys.stdin:
    serve(json.loads(line))
