"""The prompt of InternVL's native layout, as its conversion in transformers writes it, and the tokens it is made of.

The original layout keeps its prompt in Python code (`conversation.py`, template `internvl2_5`), and its tokenizer's
chat template, if any, is the language model's own, which knows no pictures.  We ask a model in the original layout by
this native prompt, so that one model is asked the same way in both layouts, trained or exported.  The two differ in
one thing: the original opens with a system message in Chinese that names the model; the native one has none.
"""

START_TOKEN, CONTEXT_TOKEN, END_TOKEN, VIDEO_TOKEN = "<img>", "<IMG_CONTEXT>", "</img>", "<video>"
END_OF_TURN = "<|im_end|>"

# Attributes by which the stock processor asks its tokenizer.
NAMED_TOKENS = {
    "start_image_token": START_TOKEN,
    "end_image_token": END_TOKEN,
    "context_image_token": CONTEXT_TOKEN,
    "video_token": VIDEO_TOKEN,
}

# The processor replaces <IMG_CONTEXT> by <img>, its tokens and </img>, and <video> by one of those for each frame.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
