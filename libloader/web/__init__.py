"""HTTP for hostile networks, on the standard library's http.server; no route and no JSON shape.

One request, top to bottom:

    sockets    addresses -> listening sockets
    server     Server: listeners, start, stop; http.server's seams
    admission  who is inside, who is shed, how much body memory is lent
    handler    one connection: head -> route -> origin -> key -> body -> route's function -> next
    request    bytes -> Head, strictly (no I/O)        body      bytes -> payload (no I/O)
    routes     the route table                         origins   CORS and Host
    auth       API keys                                problems  errors of this layer, replies
    exchange   what a route's function is given        stream    an answer that grows
    wire       one client's socket, of two threads     watch     the one thread that waits for many
    tls        the ssl module, where there is one
    response   reply heads -> bytes (no I/O)           events    SSE and NDJSON framing (no I/O)
    settings   every limit and deadline                log       lines nobody can forge or block

Laws: any doubt about framing is a refusal and a close; nobody waits for a client except that
client's own thread; every deadline is on the monotonic clock; no name is looked up.
"""
