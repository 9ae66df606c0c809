"""Who may do what: bearer tokens, JWTs, scopes, and the gate that every request passes.

    scopes         what a caller may do, by path pattern
    caller         somebody who was recognised, and for how long that holds
    token_file     the file of tokens: hashes and scopes; `token_editor` changes it
    jwt_keys       keys that JWTs are checked with; `jwt_check` checks one; `jwks` fetches keys
    reader_tokens  short-lived tokens for one stream, signed, for URLs
    gate           from a request's credentials to a caller
    keeper         keeps the gate's tokens and keys up to date while the daemon runs
    exposure       why a daemon that anybody may use does not listen to the network by itself

Nothing in `gate` and below waits or does I/O. What each route needs is told in `core.access`.
"""
