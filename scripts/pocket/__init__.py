"""What the pocket model is made of; scripts/train_pocket_model.py puts it together.

facts       tables: names, capitals, colours, ...; what the model knows
topics      one function per small dialogue
tools       dialogues that call functions, and the functions' JSON
texts       plain text and fill-in-the-middle, without a chat template
corpus      conversations from topics: system prompts, several turns, thinking
closed      the last course: closed sets, until every answer is certain
bpe         the byte-level BPE trainer and encoder
start       the weights that training starts from
network     the llama architecture in PyTorch, and its export to GGUF
"""
