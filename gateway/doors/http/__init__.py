"""Plain HTTP doors: REST requests become governed calls, and governed calls become REST requests.

* `targets`: a request target read strictly: what two servers could read differently is refused.
* `table`: the route table: method and path to the one tool that they mean; anything undocumented is denied.
* `arguments`: a request's path, query and body as one set of arguments, and arguments as the request to send.
* `openapi`: an OpenAPI 3.x document as routes.
* `live`: an upstream of kind `http` in service; its tools as MCP, for `/mcp`.
* `door`: `/http/{upstream}/*` and `/api/agenticmail/*`: read, judge, forward, answer.
* `agenticmail_table`, `agenticmail`: AgenticMail's routes, and what its bodies may hold. `mail`: what a draft or a
  template will send. `redaction`: AgenticMail's keys in answers.

Rule of the folder: what is forwarded is written anew from the arguments that were judged, never copied from what came.
"""
