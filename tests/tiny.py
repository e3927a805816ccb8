"Tiny randomly initialised models of every supported family: same classes as the real ones, no download"
import json

import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ['<unk>', '<s>', '</s>', '<pad>', '<image>', '<|vision_start|>', '<|vision_end|>', '<|image_pad|>', '<|video_pad|>',
           '<start_of_image>', '<end_of_image>', '<image_soft_token>', '<fake_token_around_image>', '<global-img>', '<end_of_utterance>']
CORPUS = [f'The secret number of item {i} is {i * 37 % 1000}. Grass is green; the sky is blue, roses are red, go on.' for i in range(300)]


def tokenizer(padding_side='right'):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tf.PreTrainedTokenizerFast(tokenizer_object=t, unk_token='<unk>', bos_token='<s>', eos_token='</s>', pad_token='<pad>',
                                      padding_side=padding_side, extra_special_tokens=dict(
        image_token='<image>', boi_token='<start_of_image>', eoi_token='<end_of_image>'))


def llama_tokenizer():
    "Like that of Llama 2 and Mistral: bytes as a way out, and a space before every text"
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(learned.to_str())['model']
    bytes_first = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
    vocabulary = {t: i for i, t in enumerate([*bytes_first, *learned['vocab']])}
    t = Tokenizer(models.BPE(vocabulary, [tuple(m) for m in learned['merges']], byte_fallback=True, fuse_unk=True, unk_token='<unk>'))
    t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    return tf.PreTrainedTokenizerFast(tokenizer_object=t, unk_token='<unk>', bos_token='<s>', eos_token='</s>')


TOK = tokenizer()
ID = TOK.convert_tokens_to_ids
TEXT = dict(vocab_size=len(TOK), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=3)
WIDE = dict(TEXT, head_dim=12)  # heads x size = 48, not the width 32
GEMMA = dict(WIDE, query_pre_attn_scalar=12, sliding_window=64)
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)

TEXT_CONFIGS = {
    'llama': lambda: tf.LlamaConfig(**TEXT, attention_bias=True),
    'mistral': lambda: tf.MistralConfig(**WIDE),
    'qwen2': lambda: tf.Qwen2Config(**TEXT),
    'qwen3': lambda: tf.Qwen3Config(**WIDE),
    'gemma2': lambda: tf.Gemma2Config(**GEMMA),
    'gemma3': lambda: tf.Gemma3TextConfig(**GEMMA),
    'phi3': lambda: tf.Phi3Config(**TEXT),
    'gpt2': lambda: tf.GPT2Config(vocab_size=len(TOK), n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2),
    'gpt_neox': lambda: tf.GPTNeoXConfig(**{k: v for k, v in TEXT.items() if k != 'num_key_value_heads'}),
    'opt': lambda: tf.OPTConfig(vocab_size=len(TOK), hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                                word_embed_proj_dim=16, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=3),
    'olmo2': lambda: tf.Olmo2Config(**TEXT),
    'hyperclovax': lambda: tf.HyperCLOVAXConfig(**TEXT, use_post_norm=True),
    'mixtral': lambda: tf.MixtralConfig(**TEXT, num_local_experts=2),
}


def text_model(family: str):
    torch.manual_seed(0)
    return randomise(tf.AutoModelForCausalLM.from_config(TEXT_CONFIGS[family](), attn_implementation='eager', experts_implementation='eager')).eval()


def randomise(model):
    "Random biases and norm weights too: initialised to 0 and 1 they would hide mistakes"
    for name, p in model.named_parameters():
        if p.ndim == 1: torch.nn.init.normal_(p, mean=1. if 'norm' in name or 'ln_' in name else 0., std=.3)
    return model


def image(seed: int = 0, size=(60, 40)):
    g = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (size[1], size[0], 3), generator=g, dtype=torch.uint8).numpy())


def _llava():
    p = tf.LlavaProcessor(tf.CLIPImageProcessorPil(size={'shortest_edge': 28}, crop_size={'height': 28, 'width': 28}), TOK, patch_size=14,
                          vision_feature_select_strategy='default', num_additional_image_tokens=1, image_token='<image>')
    c = tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=32), text_config=tf.LlamaConfig(**TEXT),
                       image_token_index=ID('<image>'))
    return c, lambda text, img: p(text=text.replace('[image]', '<image>'), images=img, return_tensors='pt'), p


def _llava_next():
    grid = [[28, 56], [56, 28], [56, 56]]
    p = tf.LlavaNextProcessor(tf.LlavaNextImageProcessorPil(size={'shortest_edge': 28}, crop_size={'height': 28, 'width': 28}, image_grid_pinpoints=grid),
                              TOK, patch_size=14, vision_feature_select_strategy='default', num_additional_image_tokens=1, image_token='<image>')
    c = tf.LlavaNextConfig(vision_config=tf.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=32), text_config=tf.MistralConfig(**WIDE),
                           image_token_index=ID('<image>'), image_grid_pinpoints=grid)
    return c, lambda text, img: p(text=text.replace('[image]', '<image>'), images=img, return_tensors='pt'), p


def _qwen(config, vision):
    ip = tf.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56, patch_size=14, merge_size=2, temporal_patch_size=2)
    c = config(text_config=dict(TEXT, rope_parameters=dict(rope_type='default', mrope_section=[1, 1, 2], rope_theta=1e4)),
               vision_config=dict(depth=2, num_heads=4, patch_size=14, spatial_merge_size=2, temporal_patch_size=2, **vision),
               image_token_id=ID('<|image_pad|>'), video_token_id=ID('<|video_pad|>'), vision_start_token_id=ID('<|vision_start|>'),
               vision_end_token_id=ID('<|vision_end|>'))

    def inputs(text, img):
        im = ip(images=img, return_tensors='pt')
        n = int(im['image_grid_thw'].prod() // 4)
        x = TOK(text.replace('[image]', '<|vision_start|>' + '<|image_pad|>' * n + '<|vision_end|>'), return_tensors='pt')
        return dict(x, **im, mm_token_type_ids=(x['input_ids'] == ID('<|image_pad|>')).int())
    return c, inputs, None


def _gemma3():
    p = tf.Gemma3Processor(tf.Gemma3ImageProcessorPil(size={'height': 28, 'width': 28}), tokenizer_gemma(), image_seq_length=4)
    c = tf.Gemma3Config(text_config=dict(GEMMA, layer_types=['sliding_attention', 'full_attention']),
                        vision_config=dict(VISION, image_size=28, patch_size=7, vision_use_head=False), mm_tokens_per_image=4,
                        boi_token_index=ID('<start_of_image>'), eoi_token_index=ID('<end_of_image>'), image_token_index=ID('<image_soft_token>'))
    return c, lambda text, img: p(text=text.replace('[image]', '<start_of_image>'), images=[img], return_tensors='pt'), p


def tokenizer_gemma():
    t = tf.PreTrainedTokenizerFast(tokenizer_object=TOK.backend_tokenizer, unk_token='<unk>', bos_token='<s>', eos_token='</s>', pad_token='<pad>',
                                   extra_special_tokens=dict(image_token='<image_soft_token>', boi_token='<start_of_image>', eoi_token='<end_of_image>'))
    return t


def _paligemma():
    c = tf.PaliGemmaConfig(text_config=dict(WIDE, model_type='gemma'), vision_config=dict(VISION, model_type='siglip_vision_model', image_size=28,
                           patch_size=14, vision_use_head=False), image_token_index=ID('<image>'), projection_dim=32, hidden_size=32)
    ip = tf.SiglipImageProcessorPil(size={'height': 28, 'width': 28})

    def inputs(text, img):
        x = TOK(text.replace('[image]', '<image>' * 4), return_tensors='pt')
        return dict(x, pixel_values=ip(images=img, return_tensors='pt')['pixel_values'], token_type_ids=torch.zeros_like(x['input_ids']))
    return c, inputs, None


def _idefics3(config):
    c = config(text_config=dict(TEXT, model_type='llama'), vision_config=dict(VISION, image_size=28, patch_size=7), scale_factor=2,
               image_token_id=ID('<image>'), pad_token_id=3)

    def inputs(text, img):  # one tile of 4 x 4 patches, merged 2 x 2
        x = TOK(text.replace('[image]', '<image>' * 4), return_tensors='pt')
        pixels = tf.SiglipImageProcessorPil(size={'height': 28, 'width': 28})(images=img, return_tensors='pt')['pixel_values'][None]
        return dict(x, pixel_values=pixels, pixel_attention_mask=torch.ones(1, 1, 28, 28, dtype=torch.long))
    return c, inputs, None


VISION_CONFIGS = {
    'llava': _llava, 'llava_next': _llava_next, 'gemma3_vision': _gemma3, 'paligemma': _paligemma,
    'qwen2_vl': lambda: _qwen(tf.Qwen2VLConfig, dict(embed_dim=32, hidden_size=32, mlp_ratio=2)),
    'qwen2_5_vl': lambda: _qwen(tf.Qwen2_5_VLConfig, dict(hidden_size=32, intermediate_size=48, out_hidden_size=32, window_size=56, fullatt_block_indexes=[1])),
    'idefics3': lambda: _idefics3(tf.Idefics3Config), 'smolvlm': lambda: _idefics3(tf.SmolVLMConfig),
}


def vision_model(family: str):
    "Model, a function (text with [image], image) -> batch of one, and the processor where it exists without torchvision"
    torch.manual_seed(0)
    config, inputs, processor = VISION_CONFIGS[family]()
    return randomise(tf.AutoModelForImageTextToText.from_config(config, attn_implementation='eager')).eval(), inputs, processor
