"Tiny randomly initialised models of every supported family: the real classes, no download"
import copy
import json

import numpy as np
import torch
import transformers as tf
from gguf import GGMLQuantizationType, GGUFWriter, quants
from PIL import Image
from tokenizers import (
    Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers)

SPECIAL = ['<unk>', '<s>', '</s>', '<pad>', '<image>',
           '<|vision_start|>', '<|vision_end|>', '<|image_pad|>', '<|video_pad|>',
           '<start_of_image>', '<end_of_image>', '<image_soft_token>',
           '<fake_token_around_image>', '<global-img>', '<end_of_utterance>']
MORE = 'Grass is green; the sky is blue, roses are red, go on.'
CORPUS = [f'The secret number of item {i} is {i * 37 % 1000}. {MORE}' for i in range(300)]
ROLES = dict(unk_token='<unk>', bos_token='<s>', eos_token='</s>')
IMAGE_ROLES = dict(image_token='<image>', boi_token='<start_of_image>', eoi_token='<end_of_image>')


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=t, **ROLES, pad_token='<pad>', padding_side='right',
        extra_special_tokens=IMAGE_ROLES)


def tokenizer_gemma():
    "The same under the roles that Gemma's processor asks for"
    roles = dict(IMAGE_ROLES, image_token='<image_soft_token>')
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=TOK.backend_tokenizer, **ROLES, pad_token='<pad>',
        extra_special_tokens=roles)


def llama_tokenizer():
    "Like that of Llama 2 and Mistral: bytes as a way out, and a space before every text"
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(learned.to_str())['model']
    bytes_first = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
    vocabulary = {t: i for i, t in enumerate([*bytes_first, *learned['vocab']])}
    merges = [tuple(m) for m in learned['merges']]
    t = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True,
                             unk_token='<unk>'))
    spaces = [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    t.normalizer = normalizers.Sequence(spaces)
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    return tf.PreTrainedTokenizerFast(tokenizer_object=t, **ROLES)


def gemma_like_tokenizer():
    "Spaces are written as ▁ and none is put before a text; BOS is"
    t = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=False))
    t.normalizer = normalizers.Replace(' ', '▁')
    t.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')
    t.decoder = decoders.Replace('▁', ' ')
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=[chr(i) for i in range(32, 127)] + ['\n']))
    return with_bos(tf.PreTrainedTokenizerFast(tokenizer_object=t, **ROLES, pad_token='<pad>'))


def with_bos(tokenizer):
    "The same tokenizer, which puts BOS before every text"
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', tokenizer.bos_token_id)])
    return tokenizer


TOK = tokenizer()
ID = TOK.convert_tokens_to_ids
SIZE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
MARKS = dict(bos_token_id=1, eos_token_id=2)
UNGROUPED = dict(SIZE, **MARKS, vocab_size=len(TOK), max_position_embeddings=512, pad_token_id=3)
TEXT = dict(UNGROUPED, num_key_value_heads=2)
WIDE = dict(TEXT, head_dim=12)  # heads x size = 48, not the width 32
GEMMA = dict(WIDE, query_pre_attn_scalar=12, sliding_window=64)
GPT2 = dict(MARKS, vocab_size=len(TOK), n_embd=32, n_layer=2, n_head=4, n_positions=512)
OPT = dict(MARKS, vocab_size=len(TOK), hidden_size=32, ffn_dim=48, num_hidden_layers=2,
           num_attention_heads=4, word_embed_proj_dim=16, max_position_embeddings=512,
           pad_token_id=3)

TEXT_CONFIGS = {
    'llama': lambda: tf.LlamaConfig(**TEXT, attention_bias=True),
    'mistral': lambda: tf.MistralConfig(**WIDE),
    'qwen2': lambda: tf.Qwen2Config(**TEXT),
    'qwen3': lambda: tf.Qwen3Config(**WIDE),
    'gemma2': lambda: tf.Gemma2Config(**GEMMA),
    'gemma3': lambda: tf.Gemma3TextConfig(**GEMMA),
    'phi3': lambda: tf.Phi3Config(**TEXT),
    'gpt2': lambda: tf.GPT2Config(**GPT2),
    'gpt_neox': lambda: tf.GPTNeoXConfig(**UNGROUPED),
    'opt': lambda: tf.OPTConfig(**OPT),
    'olmo2': lambda: tf.Olmo2Config(**TEXT),
    'hyperclovax': lambda: tf.HyperCLOVAXConfig(**TEXT, use_post_norm=True),
    'mixtral': lambda: tf.MixtralConfig(**TEXT, num_local_experts=2),
}


def text_model(family: str):
    torch.manual_seed(0)
    plain = dict(attn_implementation='eager', experts_implementation='eager')
    return randomise(tf.AutoModelForCausalLM.from_config(TEXT_CONFIGS[family](), **plain)).eval()


def randomise(model):
    "Random biases and norm weights too: initialised to 0 and 1 they would hide mistakes"
    for name, p in model.named_parameters():
        norm = 'norm' in name or 'ln_' in name
        if p.ndim == 1: torch.nn.init.normal_(p, mean=1. if norm else 0., std=.3)
    return model


def image(seed: int = 0, size=(60, 40)):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=g, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def put(text, mark):
    return text.replace('[image]', mark)


CLIP = dict(size={'shortest_edge': 28}, crop_size={'height': 28, 'width': 28})
CLIP_VISION = dict(SIZE, image_size=28, patch_size=14, projection_dim=32)
LLAVA = dict(patch_size=14, vision_feature_select_strategy='default',
             num_additional_image_tokens=1, image_token='<image>')
SQUARE = {'height': 28, 'width': 28}


def _llava():
    p = tf.LlavaProcessor(tf.CLIPImageProcessorPil(**CLIP), TOK, **LLAVA)
    c = tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**CLIP_VISION),
                       text_config=tf.LlamaConfig(**TEXT),
                       image_token_index=ID('<image>'))

    def inputs(text, img): return p(text=put(text, '<image>'), images=img, return_tensors='pt')
    return c, inputs, p


def _llava_next():
    grid = [[28, 56], [56, 28], [56, 56]]
    images = tf.LlavaNextImageProcessorPil(**CLIP, image_grid_pinpoints=grid)
    p = tf.LlavaNextProcessor(images, TOK, **LLAVA)
    c = tf.LlavaNextConfig(vision_config=tf.CLIPVisionConfig(**CLIP_VISION),
                           text_config=tf.MistralConfig(**WIDE),
                           image_token_index=ID('<image>'), image_grid_pinpoints=grid)

    def inputs(text, img): return p(text=put(text, '<image>'), images=img, return_tensors='pt')
    return c, inputs, p


def _qwen(config, vision):
    patches = dict(patch_size=14, temporal_patch_size=2)
    ip = tf.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56, merge_size=2,
                                     **patches)
    rope = dict(rope_type='default', mrope_section=[1, 1, 2], rope_theta=1e4)
    c = config(text_config=dict(TEXT, rope_parameters=rope),
               vision_config=dict(depth=2, num_heads=4, spatial_merge_size=2, **patches, **vision),
               image_token_id=ID('<|image_pad|>'), video_token_id=ID('<|video_pad|>'),
               vision_start_token_id=ID('<|vision_start|>'),
               vision_end_token_id=ID('<|vision_end|>'))

    def inputs(text, img):
        im = ip(images=img, return_tensors='pt')
        n = int(im['image_grid_thw'].prod() // 4)
        marks = '<|vision_start|>' + '<|image_pad|>' * n + '<|vision_end|>'
        x = TOK(put(text, marks), return_tensors='pt')
        of_image = (x['input_ids'] == ID('<|image_pad|>')).int()
        return dict(x, **im, mm_token_type_ids=of_image)
    return c, inputs, None


def _gemma3():
    p = tf.Gemma3Processor(tf.Gemma3ImageProcessorPil(size=SQUARE), tokenizer_gemma(),
                           image_seq_length=4)
    vision = dict(SIZE, image_size=28, patch_size=7, vision_use_head=False)
    c = tf.Gemma3Config(
        text_config=dict(GEMMA, layer_types=['sliding_attention', 'full_attention']),
        vision_config=vision, mm_tokens_per_image=4, boi_token_index=ID('<start_of_image>'),
        eoi_token_index=ID('<end_of_image>'), image_token_index=ID('<image_soft_token>'))

    def inputs(text, img):
        return p(text=put(text, '<start_of_image>'), images=[img], return_tensors='pt')
    return c, inputs, p


def _paligemma():
    vision = dict(SIZE, model_type='siglip_vision_model', image_size=28, patch_size=14,
                  vision_use_head=False)
    c = tf.PaliGemmaConfig(text_config=dict(WIDE, model_type='gemma'), vision_config=vision,
                           image_token_index=ID('<image>'), projection_dim=32, hidden_size=32)
    ip = tf.SiglipImageProcessorPil(size=SQUARE)

    def inputs(text, img):
        x = TOK(put(text, '<image>' * 4), return_tensors='pt')
        pixels = ip(images=img, return_tensors='pt')['pixel_values']
        return dict(x, pixel_values=pixels, token_type_ids=torch.zeros_like(x['input_ids']))
    return c, inputs, None


def _idefics3(config):
    c = config(text_config=dict(TEXT, model_type='llama'),
               vision_config=dict(SIZE, image_size=28, patch_size=7), scale_factor=2,
               image_token_id=ID('<image>'), pad_token_id=3)
    ip = tf.SiglipImageProcessorPil(size=SQUARE)

    def inputs(text, img):  # one tile of 4 x 4 patches, merged 2 x 2
        x = TOK(put(text, '<image>' * 4), return_tensors='pt')
        pixels = ip(images=img, return_tensors='pt')['pixel_values'][None]
        mask = torch.ones(1, 1, 28, 28, dtype=torch.long)
        return dict(x, pixel_values=pixels, pixel_attention_mask=mask)
    return c, inputs, None


QWEN2_5 = dict(hidden_size=32, intermediate_size=48, out_hidden_size=32, window_size=56,
               fullatt_block_indexes=[1])
VISION_CONFIGS = {
    'llava': _llava,
    'llava_next': _llava_next,
    'gemma3_vision': _gemma3,
    'paligemma': _paligemma,
    'qwen2_vl': lambda: _qwen(tf.Qwen2VLConfig, dict(embed_dim=32, hidden_size=32, mlp_ratio=2)),
    'qwen2_5_vl': lambda: _qwen(tf.Qwen2_5_VLConfig, QWEN2_5),
    'idefics3': lambda: _idefics3(tf.Idefics3Config),
    'smolvlm': lambda: _idefics3(tf.SmolVLMConfig),
}


def vision_model(family: str):
    "Model, a function (text with [image], image) -> batch of one, and the processor or None"
    torch.manual_seed(0)
    config, inputs, processor = VISION_CONFIGS[family]()
    model = tf.AutoModelForImageTextToText.from_config(config, attn_implementation='eager')
    return randomise(model).eval(), inputs, processor


def _turns(user, answer, first='', last=''):
    "A template from what the turns of user and model look like"
    turn = f"{{% if m['role'] == 'user' %}}{user}{{% else %}}{answer}{{% endif %}}"
    return (f"{first}{{% for m in messages %}}{turn}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{last}{{% endif %}}")


def _parts(image, text="{{ c['text'] }}"):
    "A user's content, which is a text or a list of pictures and texts"
    return ("{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
            f"{{% if c['type'] == 'image' %}}{image}{{% else %}}{text}{{% endif %}}{{% endfor %}}"
            "{% endif %}")


def _system(text): return f"{{{{ '<|im_start|>system\n{text}<|im_end|>\n' }}}}"


ANSWER = "{{ m['content'] + eos_token }}"
IM_END = "{{ '<|im_end|>\n' }}"
IM_ANSWER = "{{ '<|im_start|>assistant\n' }}"
QWEN_IMAGE = '<|vision_start|><|image_pad|><|vision_end|>'
GEMMA_END = "{{ '<end_of_turn>\n' }}"
SMOLLM = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
CHAT_TEMPLATES = dict(  # what the templates of the real checkpoints write
    mistral=_turns("{{ '[INST] ' + m['content'] + ' [/INST]' }}", ANSWER, '{{ bos_token }}'),
    llava_mistral=_turns('[INST] ' + _parts("{{ '<image>\n' }}") + ' [/INST]', ANSWER),
    llava_vicuna=_turns('USER: ' + _parts("{{ '<image>\n' }}") + ' ', ANSWER, last='ASSISTANT:'),
    gemma=_turns("{{ '<start_of_turn>user\n' }}" + _parts('<start_of_image>',
                 "{{ c['text'] | trim }}") + GEMMA_END, ANSWER, '{{ bos_token }}',
                 "{{ '<start_of_turn>model\n' }}"),
    qwen=_turns("{{ '<|im_start|>user\n' }}" + _parts(QWEN_IMAGE) + IM_END, ANSWER,
                _system('You are a helpful assistant.'), IM_ANSWER),
    smollm2=_turns("{{ '<|im_start|>user\n' + m['content'] }}" + IM_END, ANSWER,
                   _system(SMOLLM), IM_ANSWER),
)

CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
LAYER = {'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
         'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
         'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
         'ffn_down': 'mlp.down_proj'}
OUTSIDE = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
GGUF = dict(TEXT, intermediate_size=64)  # rows of whole blocks of 32


def gguf_names(n_layers):
    "Name in a GGUF file -> name in a Llama of transformers"
    layers = {f'blk.{i}.{a}.weight': f'model.layers.{i}.{b}.weight'
              for i in range(n_layers) for a, b in LAYER.items()}
    return layers | {f'{a}.weight': f'{b}.weight' for a, b in OUTSIDE.items()}


def turned(w, n_heads):
    "Queries or keys in the order of llama.cpp, where the two halves of a rotation lie together"
    return w.reshape(n_heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def gguf_metadata(writer, config):
    writer.add_name('Jargon of the training')
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.)
    writer.add_vocab_size(config.vocab_size)


def gguf_tokenizer(writer):
    bpe = json.loads(TOK.backend_tokenizer.to_str())['model']
    writer.add_tokenizer_model('gpt2')
    writer.add_token_list(list(bpe['vocab']))
    writer.add_token_types([3 if t in SPECIAL else 1 for t in bpe['vocab']])  # 3: special
    writer.add_token_merges([' '.join(m) for m in bpe['merges']])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def write_gguf(path, kind='F32', architecture='llama', without=()):
    "A tiny Llama as a GGUF file; the same model with weights rounded as in the file"
    torch.manual_seed(0)
    model = randomise(tf.LlamaForCausalLM(tf.LlamaConfig(**GGUF))).eval()
    weights = model.state_dict()
    heads = {'attn_q': GGUF['num_attention_heads'], 'attn_k': GGUF['num_key_value_heads']}
    writer = GGUFWriter(path, architecture)
    gguf_metadata(writer, model.config)
    gguf_tokenizer(writer)
    for name, source in gguf_names(GGUF['num_hidden_layers']).items():
        w = weights[source].numpy()
        stored = GGMLQuantizationType['F32' if w.ndim == 1 else kind]
        rounded = quants.dequantize(quants.quantize(w, stored), stored)
        weights[source].copy_(torch.from_numpy(rounded))
        n_heads = heads.get(name.split('.')[-2])
        if n_heads: w = np.ascontiguousarray(turned(w, n_heads))
        if name not in without:
            writer.add_tensor(name, quants.quantize(w, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
