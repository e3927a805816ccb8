"Prompts as they are sent: the templates of the real families, and which tokens are the content"
import copy

import pytest
import tiny
import torch
import transformers as tf

from headpursuit.capture import capture, default_rule, head_samples, position_mask
from headpursuit.generation import generate, with_answer
from headpursuit.heads import HeadModel

QUESTION = 'Which item is number 3?'
TEXT = f'Answer in 1-3 words only. Question: {QUESTION} Answer:'
ASKED = dict(text=TEXT, content=(TEXT.index(QUESTION), TEXT.index(QUESTION) + len(QUESTION)))
SYSTEM = '<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n'
IM_END = '<|im_end|>\n<|im_start|>assistant\n'
SENT = dict(  # before the text, the mark of a picture, after the text
    mistral=('<s>[INST] ', None, ' [/INST]'),
    llava_mistral=('[INST] ', '<image>\n', ' [/INST]'),
    llava_vicuna=('USER: ', '<image>\n', ' ASSISTANT:'),
    gemma=('<s><start_of_turn>user\n', '<start_of_image>',
           '<end_of_turn>\n<start_of_turn>model\n'),
    qwen=(SYSTEM.format('You are a helpful assistant.'),
          '<|vision_start|><|image_pad|><|vision_end|>', IM_END),
    smollm2=(SYSTEM.format(tiny.SMOLLM), None, IM_END),
)
PICTURES = [f for f, (_, mark, _) in SENT.items() if mark]
TOKENIZERS = dict(  # what the families use
    mistral=lambda: tiny.with_bos(tiny.llama_tokenizer()),
    llava_mistral=lambda: tiny.with_bos(tiny.llama_tokenizer()),
    llava_vicuna=lambda: tiny.with_bos(tiny.llama_tokenizer()),
    gemma=tiny.gemma_like_tokenizer,
    qwen=lambda: copy.deepcopy(tiny.TOK),
    smollm2=lambda: copy.deepcopy(tiny.TOK),
)


def chatting(family):
    "A tiny text model with a family's kind of tokenizer and template"
    tokenizer = TOKENIZERS[family]()
    tokenizer.chat_template = tiny.CHAT_TEMPLATES[family]
    config = tf.LlamaConfig(**dict(tiny.TEXT, vocab_size=len(tokenizer) + 1))
    torch.manual_seed(0)
    return HeadModel(tiny.randomise(tf.LlamaForCausalLM(config)).eval(), tokenizer)


@pytest.mark.parametrize('family', SENT)
def test_a_text_as_sent(family):
    before, _, after = SENT[family]
    model = chatting(family)
    prompt, = model.as_sent([ASKED])
    assert prompt['text'] == before + TEXT + after
    assert prompt['text'][slice(*prompt['content'])] == QUESTION
    bare, = model.as_sent([ASKED], chat=False)
    assert bare == ASKED


@pytest.mark.parametrize('family', PICTURES)
def test_a_picture_as_sent(family):
    before, mark, after = SENT[family]
    model = chatting(family)
    picture = tiny.image()
    prompt, = model.as_sent([dict(ASKED, image=picture)])
    assert prompt['text'] == before + mark + TEXT + after and prompt['image'] is picture
    assert prompt['text'][slice(*prompt['content'])] == QUESTION
    assert model.image_mark == mark.strip()
    bare, = model.as_sent([dict(ASKED, image=picture)], chat=False)
    assert bare['text'] == f'{mark.strip()} {TEXT}'


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', SENT)
def test_tokens_are_those_of_the_text_as_sent(family, side):
    "One BOS where the tokenizer wants it, and the content wherever the padding is"
    model = chatting(family)
    tokenizer = model.tokenizer
    short = dict(text='Question: Why? Answer:', content=(10, 14))
    prompts = model.as_sent([ASKED, short])
    batch = model.encode(prompts, padding_side=side)
    own = model.content_mask(prompts, batch)
    texts = ('Which item is number 3?', 'Why?')
    for prompt, ids, real, mask, text in zip(prompts, batch['input_ids'], batch['attention_mask'],
                                             own, texts):
        whole = tokenizer.decode(ids[real.bool()])
        begins = '<s>' if tokenizer('x').input_ids[0] == tokenizer.bos_token_id else ''
        assert whole.replace('<s> ', '<s>') == begins + prompt['text'].removeprefix('<s>')
        assert (ids[real.bool()] == tokenizer.bos_token_id).sum() == whole.count('<s>') <= 1
        assert tokenizer.decode(ids[mask]).strip() == text


def test_a_template_that_changes_texts_is_refused():
    model = chatting('mistral')
    model.tokenizer.chat_template = "{{ messages[0]['content'] | replace('e', 'E') }}"
    with pytest.raises(ValueError, match='changes the text .*chat=False'): model.as_sent([TEXT])
    assert model.as_sent([TEXT], chat=False)[0]['text'] == TEXT


def test_only_some_with_bos_are_refused():
    with pytest.raises(ValueError, match="prompt 0 of a batch begins with '<s>'"):
        chatting('mistral').encode(['<s>one', 'two'])


def test_capture_looks_at_the_content():
    model = chatting('mistral')
    prompts = model.as_sent([ASKED, dict(text='Question: Why? Answer:', content=(10, 14)), 'So.'])
    stats = capture(model, prompts, samples=True, progress=False)
    assert stats.positions == 'content'
    one = model.encode(prompts[:1])
    mask = model.content_mask(prompts[:1], one)
    assert default_rule(one) == 'prompt'
    z = head_samples(model, one, lambda batch: mask)
    torch.testing.assert_close(stats.samples[:1].float(), z, rtol=1e-2, atol=1e-2)
    whole = capture(model, prompts, positions='prompt', progress=False)
    assert whole.positions == 'prompt' and whole.prompt_hash == stats.prompt_hash
    assert not torch.allclose(whole.mean, stats.mean)
    plain = capture(model, ['one', 'two'], positions='content', progress=False)
    assert plain.count == 2


def test_an_answer_follows_the_template():
    prompt, = chatting('gemma').as_sent([TEXT])
    assert with_answer(dict(prompt, answer='Paris'))['text'].endswith('model\nParis')
    prompt, = chatting('mistral').as_sent([TEXT])
    assert with_answer(dict(prompt, answer='Paris'))['text'].endswith('[/INST] Paris')
    assert len(generate(chatting('mistral'), [prompt], max_new_tokens=3)) == 1


@pytest.mark.parametrize('name,family', [('llava_next', 'llava_mistral'),
                                         ('gemma3_vision', 'gemma')])
def test_content_behind_a_picture(name, family):
    lm, _, processor = tiny.vision_model(name)
    processor = copy.deepcopy(processor)
    processor.chat_template = tiny.CHAT_TEMPLATES[family]
    model = HeadModel(lm, processor)
    prompts = model.as_sent([dict(ASKED, image=tiny.image())])
    batch = model.encode(prompts)
    assert default_rule(batch) == 'image'
    assert position_mask(model, batch, 'image').sum() > 1
    text = model.tokenizer.decode(batch['input_ids'][model.content_mask(prompts, batch)])
    assert text.strip() == QUESTION
    stats = capture(model, prompts * 2, positions='content', progress=False)
    assert stats.count == 2 and stats.positions == 'content'
    longer = model.as_sent([dict(text=f'Now, then. {TEXT}', content=(11, 11 + len(TEXT)),
                                 image=tiny.image(1))])
    for side in ('left', 'right'):
        batch = model.encode(prompts + longer, padding_side=side)
        masks = model.content_mask(prompts + longer, batch)
        said = [model.tokenizer.decode(x[m]) for x, m in zip(batch['input_ids'], masks)]
        assert [s.strip() for s in said] == [QUESTION, TEXT]


def test_pictures_are_prepared_once():
    lm, _, processor = tiny.vision_model('llava_next')
    calls = []

    class Counting:
        tokenizer, image_token = processor.tokenizer, processor.image_token
        def __call__(self, text, **options):
            calls.append(len(text))
            return processor(text=text, **options)

    model = HeadModel(lm, Counting())
    prompts = model.as_sent([dict(text=f'Number {i}:', image=tiny.image(i)) for i in range(3)])
    kept = {}
    first = generate(model, prompts, batch_size=2, kept=kept)
    assert calls == [2, 1]
    assert generate(model, prompts, batch_size=2, kept=kept) == first and calls == [2, 1]
    assert generate(model, prompts, batch_size=2) == first and calls == [2, 1] * 2
