"""The frontend: speaks HTTP and WebSocket with clients, and mail with the tokenizers.

    actor        the Trio shell: server, mail, watch over the others, draining
    routes       which function answers which path; keys, methods, health
    engine       sends Generate and Abort, cuts rows, hands them to sinks
    slots        which ledger slots this frontend holds, and when each is given back
    parameters   request fields -> sampling and options     prompts   messages -> prompt
    chat, completions        over choices (what both share) and chunks (their event stream, sans-I/O)
    responses                over turns (a request validated), response_stream (its events, sans-I/O),
                             live (a running response, its readers, the store), finder (a response by its
                             id, though another process began it)
    socket_mode              the Responses API on a WebSocket, in the order that lanes (sans-I/O) decides
    delivery     from rows to a socket that may be slow       text   what rows add up to

The token path: mail task -> engine.deliver -> sink.feed, then sink.pump -> socket. It switches no task and
never waits: what a slow socket does not take is merged until the socket takes more.
"""
