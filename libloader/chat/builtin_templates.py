"""Chat templates of our own for model files that carry none, chosen with --chat-template NAME.

Each writes the control texts that the models of its name were trained with; the texts are facts of
the formats, the templates are ours. Where a format knows no system message, it goes in front of
the first user message. chatml is the fallback: what most fine-tunes of unknown origin use.
"""

from __future__ import annotations

from collections.abc import Mapping

FALLBACK = "chatml"

# For formats without a system role: `system` is its text, to be set before the first user turn.
_TAKE_SYSTEM = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages if message.role == 'system' -%}
{%- set ns.system = ns.system + message.content + '\\n\\n' -%}
{%- endfor -%}
"""

_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

_LLAMA2 = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' -%}
{%- elif message.role == 'assistant' -%}
{{- ' ' + message.content|trim + ' ' + eos_token -}}
{%- else -%}
{{- bos_token + '[INST] ' + ns.system + message.content|trim + ' [/INST]' -}}
{%- set ns.system = '' -%}
{%- endif -%}
{%- endfor -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{- message.content|trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_LLAMA4 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|header_start|>' + message.role + '<|header_end|>\\n\\n' -}}
{{- message.content|trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|header_start|>assistant<|header_end|>\\n\\n' -}}
{%- endif -%}
"""

_MISTRAL = (
    "{{- bos_token -}}\n"
    + _TAKE_SYSTEM
    + """\
{%- for message in messages if message.role != 'system' -%}
{%- if message.role == 'assistant' -%}
{{- ' ' + message.content|trim + eos_token -}}
{%- else -%}
{{- '[INST] ' + ns.system + message.content + '[/INST]' -}}
{%- set ns.system = '' -%}
{%- endif -%}
{%- endfor -%}
"""
)

_MISTRAL_V7 = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' -}}
{%- elif message.role == 'assistant' -%}
{{- message.content + eos_token -}}
{%- else -%}
{{- '[INST]' + message.content + '[/INST]' -}}
{%- endif -%}
{%- endfor -%}
"""

_GEMMA = (
    "{{- bos_token -}}\n"
    + _TAKE_SYSTEM
    + """\
{%- for message in messages if message.role != 'system' -%}
{%- set role = 'model' if message.role == 'assistant' else 'user' -%}
{{- '<start_of_turn>' + role + '\\n' + ns.system + message.content|trim + '<end_of_turn>\\n' -}}
{%- set ns.system = '' -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""
)

_PHI3 = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

_PHI4 = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant<|im_sep|>' -}}
{%- endif -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

_VICUNA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content + '\\n\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- 'ASSISTANT: ' + message.content + eos_token + '\\n' -}}
{%- else -%}
{{- 'USER: ' + message.content + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'ASSISTANT:' -}}
{%- endif -%}
"""

_ALPACA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content + '\\n\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' -}}
{%- else -%}
{{- '### Instruction:\\n' + message.content + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '### Response:\\n' -}}
{%- endif -%}
"""

_DEEPSEEK = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content -}}
{%- elif message.role == 'assistant' -%}
{{- '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' -}}
{%- else -%}
{{- '<｜User｜>' + message.content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜>' -}}
{%- endif -%}
"""

_COMMAND_R = """\
{%- set names = {'system': 'SYSTEM', 'assistant': 'CHATBOT'} -%}
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|START_OF_TURN_TOKEN|><|' + names.get(message.role, 'USER') + '_TOKEN|>' -}}
{{- message.content|trim + '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}
{%- endif -%}
"""

_GRANITE = """\
{%- for message in messages -%}
{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' -}}
{{- message.content + '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_of_role|>assistant<|end_of_role|>' -}}
{%- endif -%}
"""

_CHATGLM4 = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

_OPENCHAT = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content + '<|end_of_turn|>' -}}
{%- else -%}
{%- set name = 'Assistant' if message.role == 'assistant' else 'User' -%}
{{- 'GPT4 Correct ' + name + ': ' + message.content + '<|end_of_turn|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'GPT4 Correct Assistant:' -}}
{%- endif -%}
"""

_FALCON3 = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content -}}
{{- eos_token if message.role == 'assistant' else '' -}}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatglm4": _CHATGLM4,
    "chatml": _CHATML,
    "command-r": _COMMAND_R,
    "deepseek": _DEEPSEEK,
    "falcon3": _FALCON3,
    "gemma": _GEMMA,
    "granite": _GRANITE,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "llama4": _LLAMA4,
    "mistral": _MISTRAL,
    "mistral-v7": _MISTRAL_V7,
    "openchat": _OPENCHAT,
    "phi3": _PHI3,
    "phi4": _PHI4,
    "vicuna": _VICUNA,
    "zephyr": _ZEPHYR,
}
