"""Messages to prompts, and the text of a model back to a message. No sockets, no engine.

template          a chat template as the server uses it: messages in, prompt segments out
capabilities      what a template can do, found out by rendering with it
messages          messages in the form that a template handles
control_tokens    what a client typed never becomes a control token
jinja/            the template language
builtin_templates templates of our own, for model files without one
answer            the text of an answer into reasoning, content and calls, as it streams
reasoning         think blocks
tools/            formats of tool calls: reading them, and the rules that force them
"""
