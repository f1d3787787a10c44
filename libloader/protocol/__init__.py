"""Request and response JSON of every API dialect, without sockets: dict in, plain value out.

strict_json   bytes -> dict, or BodyInvalid naming what is wrong
fields        the one reader of field tables: types, limits, defaults, aliases, ignored names
sampling      the table of generation fields that all generating endpoints share
chat          /v1/chat/completions
embeddings    /v1/embeddings
models        /v1/models, /health
"""
