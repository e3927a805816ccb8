"Every supported family, tiny and random: decomposition, padding, capture, edit, merge, adapter"
import copy

import pandas as pd
import pytest
import tiny
import torch
import transformers as tf
from accelerate import disk_offload
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn

from headpursuit.capture import capture, head_samples
from headpursuit.cause import likelihood
from headpursuit.dictionary import Concept
from headpursuit.editing import HeadEdit
from headpursuit.heads import HeadModel
from headpursuit.ranking import atlas, rank_by_logit_lens, rank_heads

TEXTS = ['The sky is blue', 'Grass', 'The secret number of item 7 is 259.', 'roses are red, go on']
FAMILIES = [*tiny.TEXT_CONFIGS, *tiny.VISION_CONFIGS]
EDIT = HeadEdit(['0.1', '1.3', '1.0'], [-1, 5, 0])


def close(found, expected, atol=1e-5, rtol=1e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def same(found, expected):
    close(found, expected, atol=0, rtol=0)


def load(family):
    "HeadModel and a batch of one that the model accepts"
    if family in tiny.TEXT_CONFIGS:
        batch = tiny.TOK(TEXTS[0], return_tensors='pt', return_token_type_ids=False)
        return HeadModel(tiny.text_model(family), tiny.TOK), dict(batch)
    model, inputs, processor = tiny.vision_model(family)
    batch = inputs('[image] ' + TEXTS[0], tiny.image())
    return HeadModel(model, processor or tiny.TOK), dict(batch)


def logits(model, batch):
    with torch.no_grad(): return model(**batch).logits


def bias_of(layer):
    bias = getattr(layer, 'bias', None)
    return 0 if bias is None else bias


def keep_input(kept, i):
    return lambda module, args: kept.__setitem__(i, args[0])


def keep_output(kept, i):
    return lambda module, args, out: kept.__setitem__(i, out)


@pytest.mark.parametrize('family', FAMILIES)
def test_sum_of_heads_is_the_attention_output(family):
    model, batch = load(family)
    z, attention = {}, {}
    for i, p in enumerate(model.projections):
        p.register_forward_pre_hook(keep_input(z, i))
        p.register_forward_hook(keep_output(attention, i))
    logits(model.model, batch)
    for i, p in enumerate(model.projections):
        by_head = z[i].unflatten(-1, (model.n_heads, model.head_dim))
        parts = torch.einsum('bshk,hdk->bshd', by_head, model.W_O(i))
        close(parts.sum(-2) + bias_of(p), attention[i], rtol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_writes_add_up_to_what_enters_the_residual_stream(family):
    "Checked against the module whose output is added to the stream: the post-norm if there is one"
    model, batch = load(family)
    z, written = {}, {}
    for i, (p, norm) in enumerate(zip(model.projections, model.post_norms)):
        (p if norm is None else norm).register_forward_hook(keep_output(written, i))
    with torch.no_grad(), model.watch(z.__setitem__): model.model(**batch)
    for i, p in enumerate(model.projections):
        close(model.contributions(i, z[i]).sum(-2) + bias_of(p), written[i])


def test_post_norm_is_found_only_where_it_exists():
    post = {f for f in FAMILIES if load(f)[0].post_norms[0] is not None}
    assert post == {'gemma2', 'gemma3', 'gemma3_vision', 'hyperclovax', 'olmo2'}


@pytest.mark.parametrize('family', tiny.TEXT_CONFIGS)
def test_capture_does_not_depend_on_batch_or_padding(family):
    model = HeadModel(tiny.text_model(family), tiny.tokenizer())
    for rule in ('prompt', 'last', 'all'):
        options = dict(positions=rule, progress=False)
        one = capture(model, TEXTS, batch_size=1, **options)
        for side in ('left', 'right'):
            many = capture(model, [model.encode(TEXTS, padding_side=side)], **options)
            assert many.count == one.count
            assert many.prompt_hash == one.prompt_hash
            close(many.mean, one.mean, atol=2e-5)
            close(many.scatter, one.scatter, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('family', tiny.VISION_CONFIGS)
def test_image_positions_are_the_image_tokens_of_the_backbone(family):
    model, batch = load(family)
    where = batch['input_ids'][0] == model.image_token_id
    assert where.any()
    assert not any('vision' in n or 'visual' in n for n in model.projection_names)
    z = {}
    with torch.no_grad(), model.watch(z.__setitem__): model.model(**batch)
    expected = torch.stack([z[i][0, where].mean(0) for i in range(model.n_layers)])
    close(head_samples(model, batch, 'image')[0], expected)
    stats = capture(model, [batch], progress=False)
    assert (stats.positions, stats.count) == ('image', 1)


@pytest.mark.parametrize('family', ['llava', 'llava_next', 'gemma3_vision'])
def test_images_pass_through_the_processor(family):
    model, _ = load(family)
    text = {'gemma3_vision': '<start_of_image>'}.get(family, '<image>') + ' The sky is'
    samples = [dict(text=text, image=tiny.image(i)) for i in range(3)]
    stats = capture(model, samples, batch_size=2, progress=False)
    assert (stats.positions, stats.count) == ('image', 3)
    alone = sum(capture(model, [s], progress=False) for s in samples)
    close(stats.mean, alone.mean)
    assert stats.prompt_hash == alone.prompt_hash


@pytest.mark.parametrize('family', ['llava', 'llava_next', 'gemma3_vision'])
def test_a_batch_may_have_prompts_with_and_without_a_picture(family):
    model, _ = load(family)
    text = {'gemma3_vision': '<start_of_image>'}.get(family, '<image>') + ' The sky is'
    samples = [dict(text=text, image=tiny.image(0)), 'Grass', dict(text=text, image=tiny.image(2))]
    options = dict(positions='prompt', progress=False)
    mixed = capture(model, samples, **options)
    apart = sum(capture(model, [s], **options) for s in samples)
    close(mixed.mean, apart.mean)


@pytest.mark.parametrize('family', FAMILIES)
def test_hook_merge_and_adapter_are_the_same_edit(family, tmp_path):
    model, batch = load(family)
    plain = logits(model.model, batch)
    with EDIT.applied(model): edited = logits(model.model, batch)
    assert (edited - plain).abs().max() > 1e-4
    same(logits(model.model, batch), plain)
    EDIT.save(tmp_path, model)
    assert HeadEdit.load(tmp_path, model).alphas == EDIT.alphas
    merged = EDIT.merge(copy.deepcopy(model.model))
    close(logits(merged, batch), edited)
    adapted = PeftModel.from_pretrained(model.model, str(tmp_path)).eval()
    close(logits(adapted, batch), edited)
    with adapted.disable_adapter(): close(logits(adapted, batch), plain)


def first_pass(model, batch, edit):
    "What the first layer's output projection gives for the prompt, within generate, and the text"
    kept = []
    def keep(module, args, out): kept.append(out)
    with torch.no_grad(), edit.applied(model):
        handle = model.projections[0].register_forward_hook(keep)
        ids = model.model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0,
                                   eos_token_id=None)
        handle.remove()
    return kept, ids


@pytest.mark.parametrize('family', FAMILIES)
def test_an_edit_at_some_positions_changes_no_other_token(family):
    model, batch = load(family)
    ids = batch['input_ids']
    image = torch.zeros_like(ids).bool() if model.image_token_id is None else (
        ids == model.image_token_id)
    last = torch.zeros_like(image)
    last[:, -1] = True
    heads = dict(heads=['0.0', '0.1'], alpha=-3)
    plain, _ = first_pass(model, batch, HeadEdit(heads['heads'], 1))
    marks = dict(image=image, last=last, generated=torch.zeros_like(image))
    concept = None if model.post_norms[0] is not None else Concept(
        'few', [[5], [9]], ['a', 'b'], None)
    for place, where in marks.items():
        for subspace in (None, concept):
            if place == 'image' and not image.any(): continue
            edit = HeadEdit(**heads, subspace=subspace, positions=place)
            edited, _ = first_pass(model, batch, edit)
            changed = (edited[0] - plain[0]).abs().amax(-1) > 1e-6
            assert torch.equal(changed, where)
            assert len(edited) == 3


@pytest.mark.parametrize('place', ['last', 'generated'])
def test_positions_hold_for_padded_prompts_and_adapters(place):
    model = load('llama')[0]
    tokens = tiny.TOK(TEXTS, return_tensors='pt', padding=True, padding_side='left',
                      return_token_type_ids=False)
    edit = HeadEdit(['0.0', '1.1'], -5, positions=place)
    _, together = first_pass(model, dict(tokens), edit)
    for text, ids in zip(TEXTS, together):
        alone = dict(tiny.TOK(text, return_tensors='pt', return_token_type_ids=False))
        assert first_pass(model, alone, edit)[1][0, -3:].tolist() == ids[-3:].tolist()
    adapted = get_peft_model(copy.deepcopy(model.model), LoraConfig(target_modules=['up_proj']))
    around = HeadModel(adapted.eval(), tiny.TOK)
    assert torch.equal(first_pass(around, dict(tokens), edit)[1], together)


@pytest.mark.parametrize('family', tiny.TEXT_CONFIGS)
def test_a_common_beginning_is_read_once_and_changes_nothing(family):
    model = load(family)[0]
    begin = ' '.join(TEXTS)
    asked = pd.DataFrame(dict(prompt=[f'{begin} {t}' for t in TEXTS], concept='few',
                              answer=['blue', 'green', 'the sky', 'red']))
    read = []
    handle = model.layers[0].register_forward_pre_hook(
        lambda module, args, inputs: read.append((args or (inputs['hidden_states'],))[0].shape[:2]),
        with_kwargs=True)
    with EDIT.applied(model):
        together = likelihood(model, asked)
        assert [rows for rows, _ in read] == [1, 4] and read[1][1] < read[0][1]
        alone = likelihood(model, asked, batch_size=1)
    handle.remove()
    close(torch.tensor(together.log_prob), torch.tensor(alone.log_prob), atol=1e-3)


def things():
    words = ['sky', 'grass', 'roses', 'item', 'mauve']
    return Concept.from_words('things', words, tiny.TOK, multi='word')


@pytest.mark.parametrize('family', FAMILIES)
def test_a_concepts_rows_are_those_of_the_whole_dictionary(family):
    "Number for number, words of several tokens included"
    model, _ = load(family)
    concept = things()
    assert max(map(len, concept.pieces)) > 1
    for fold in (False, True):
        found = model.atoms(concept, fold_norm=fold)
        expected = concept.atoms(model.dictionary(fold_norm=fold))
        assert found.names == expected.names
        assert torch.equal(found.atoms, expected.atoms)


def test_a_concept_of_another_tokenizer_is_refused():
    model = HeadModel(tiny.text_model('llama'), tiny.TOK)
    wide = Concept('wide', [[3], [len(tiny.TOK)]], ['a', 'b'], None)
    with pytest.raises(ValueError, match=f'token id {len(tiny.TOK)}.*another tokenizer'):
        model.atoms(wide)


def answers(model, batch):
    "All that the library computes with a model's weights"
    batch = {k: v.to(model.device) for k, v in batch.items()}
    concept = things()
    stats = capture(model, [batch] * 2, positions='all', samples=True, progress=False)
    yield stats.scatter
    for rule in ('magnitude', 'energy'):
        yield torch.tensor(rank_heads(model, stats, concept, n_atoms=2, rule=rule).grid())
        table = atlas(model, stats, 2, rule=rule, progress=False)
        yield torch.tensor(table[['token_id', 'explained']].to_numpy())
    yield torch.tensor(rank_heads(model, stats, concept).grid())
    yield torch.tensor(rank_by_logit_lens(model, stats, concept, fold_norm=True).grid())
    with EDIT.applied(model): yield logits(model.model, batch).cpu()


# the forward pass of idefics3 itself does not run with its vision tower on disk
@pytest.mark.parametrize('family', [f for f in FAMILIES if f != 'idefics3'])
def test_a_model_on_disk_gives_the_same_answers(family, tmp_path):
    "As `device_map='auto'` leaves a model that is larger than the device"
    here, batch = load(family)
    weights = str(tmp_path / 'weights')
    away = disk_offload(copy.deepcopy(here.model), weights, execution_device='cpu')
    there = HeadModel(away, here.processor)
    assert all(p.is_meta for p in there.model.parameters())
    assert there.device.type == 'cpu'
    for a, b in zip(answers(here, batch), answers(there, batch), strict=True): same(b, a)
    with pytest.raises(ValueError, match='offloaded'): EDIT.merge(there)
    EDIT.save(tmp_path / 'edit', there)
    assert HeadEdit.load(tmp_path / 'edit', here).alphas == EDIT.alphas


@pytest.mark.parametrize('doubles', [True, False], ids=['doubles', 'single precision only'])
@pytest.mark.parametrize('family', FAMILIES)
def test_answers_do_not_depend_on_the_device(family, doubles):
    "On a make-believe device that does not mix with others; without doubles, like Apple's GPUs"
    away = pytest.importorskip('away', exc_type=ImportError)
    here, batch = load(family)
    there = HeadModel(away.send(copy.deepcopy(here.model)), here.processor)
    with away.present(doubles):
        assert there.device == away.DEVICE
        assert there.exact_device == (away.DEVICE if doubles else torch.device('cpu'))
        with pytest.raises(RuntimeError, match='two devices'):
            there.W_O(0) @ torch.ones(here.head_dim)
        found = list(answers(there, batch))
    for a, b in zip(answers(here, batch), found, strict=True):
        assert b.device.type == 'cpu'
        close(b, a)


def test_merged_edit_is_a_plain_checkpoint(tmp_path):
    model, batch = load('llama')
    edit = HeadEdit(['0.1'], -1)
    with edit.applied(model): edited = logits(model.model, batch)
    edit.merge(model).save_pretrained(tmp_path)
    close(logits(type(model.model).from_pretrained(tmp_path), batch), edited)


def test_unknown_family_says_what_was_looked_for():
    lm = tiny.text_model('llama')
    del lm.model.layers[0].self_attn.o_proj
    with pytest.raises(ValueError, match='layer 0.*looked for.*self_attn.*o_proj'):
        HeadModel(lm)


def test_a_family_that_changes_what_heads_write_is_refused():
    image = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, embed_dim=16,
                 num_embeddings=16, latent_channels=16, resolution=16)
    parts = dict(tiny.TEXT, vq_config=image, vocabulary_map={'<image>': 4})

    def chameleon(**options):
        config = tf.ChameleonConfig(**parts, **options)
        return HeadModel(tf.AutoModelForImageTextToText.from_config(config))
    assert chameleon().n_heads == 4
    with pytest.raises(ValueError, match="ChameleonSwinDecoderLayer.*'swin_norm'"):
        chameleon(swin_norm=True)


@pytest.mark.parametrize('family', tiny.TEXT_CONFIGS)
def test_the_hash_of_the_weights_sees_every_head_and_every_other_weight(family):
    model = HeadModel(tiny.text_model(family))
    seen = {model.weights_hash()}
    for h in model.heads:
        merged = HeadEdit(h, -1).merge(copy.deepcopy(model.model))
        seen.add(HeadModel(merged).weights_hash())
    for p in model.model.parameters():
        q = p.detach().clone()
        with torch.no_grad(): p.add_(.1)
        seen.add(model.weights_hash())
        with torch.no_grad(): p.copy_(q)
    assert len(seen) == 1 + len(model.heads) + len(list(model.model.parameters()))


def test_compiled_models_are_read_and_edited():
    model, batch = load('llama')
    stats = capture(model, [batch], progress=False)
    compiled = copy.deepcopy(model.model)
    compiled.compile(backend='eager')
    logits(compiled, batch)
    close(capture(compiled, [batch], progress=False).mean, stats.mean, atol=1e-6, rtol=1e-5)
    with EDIT.applied(model): edited = logits(model.model, batch)
    with EDIT.applied(compiled): close(logits(compiled, batch), edited)


def test_without_a_tokenizer_the_same_tokens_count():
    model, _ = load('llama')
    texts = model.encode(TEXTS)
    batch = {k: torch.cat([torch.ones_like(v[:, :1]), v], 1) for k, v in texts.items()}
    assert batch['input_ids'][0, 0] == 1  # <s>
    without = capture(model.model, [batch], progress=False)
    same(without.mean, capture(model, [batch], progress=False).mean)


def test_folded_dictionary_handles_a_narrow_embedding():
    model, _ = load('opt')  # word_embed_proj_dim 16, width 32
    assert model.dictionary().atoms.shape == (len(tiny.TOK), 32)


def test_atoms_of_a_tokenizer_with_byte_tokens_are_the_ones_that_are_written():
    tok = tiny.llama_tokenizer()
    digits = Concept.from_words('digits', list('0123456789'), tok, case=False, plural=False)
    names = tok.convert_ids_to_tokens(digits.ids)
    assert {n.strip('▁') for n in names} == set('0123456789')
    assert tok.decode(tok.convert_tokens_to_ids(['<0x37>'])) == '7'
    sky = Concept.from_words('sky', ['sky'], tok, case=False, plural=False)
    assert set(tok.convert_ids_to_tokens(sky.ids)) == {'▁sky', 'sky'}
    cut = Concept.from_words('cut', ['mauve'], tok, multi='pieces')
    assert len(cut) > 1
    assert '▁' not in tok.convert_ids_to_tokens(cut.ids)


def test_an_adapter_has_to_be_merged_first():
    config = LoraConfig(target_modules=['o_proj'], init_lora_weights=False)
    lm = get_peft_model(tiny.text_model('llama'), config).eval()
    with pytest.raises(ValueError, match='layer 0 is wrapped.*merge_and_unload'):
        HeadModel(lm.base_model.model)
    assert HeadModel(lm.merge_and_unload()).n_heads == 4


@pytest.mark.parametrize('options', [dict(target_modules=['lm_head']),
                                     dict(target_modules=['q_proj'], modules_to_save=['lm_head'])])
def test_an_adapted_unembedding_is_refused(options):
    lm = get_peft_model(tiny.text_model('llama'), LoraConfig(**options)).eval()
    with pytest.raises(ValueError, match='the unembedding is wrapped.*merge_and_unload'):
        HeadModel(lm)
    assert HeadModel(lm.merge_and_unload()).n_heads == 4


def test_an_adapter_elsewhere_is_part_of_the_model():
    config = LoraConfig(target_modules=['q_proj'], init_lora_weights=False)
    torch.manual_seed(0)
    lm = get_peft_model(tiny.text_model('llama'), config).eval()
    adapted = HeadModel(lm, tiny.TOK)
    found = capture(adapted, TEXTS, progress=False).mean
    merged = HeadModel(lm.merge_and_unload(), tiny.TOK)
    close(found, capture(merged, TEXTS, progress=False).mean)


def test_prompt_tuning_is_refused():
    config = PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=3)
    lm = get_peft_model(tiny.text_model('llama'), config)
    with pytest.raises(ValueError, match='prompt tuning'): HeadModel(lm)


ENCODER_DECODERS = {
    'bart': lambda: tf.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2),
    't5': lambda: tf.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
}


@pytest.mark.parametrize('family', ENCODER_DECODERS)
def test_encoder_decoders_are_refused(family):
    lm = tf.AutoModelForSeq2SeqLM.from_config(ENCODER_DECODERS[family]())
    with pytest.raises(ValueError, match='is an encoder-decoder model.*decoder-only'):
        HeadModel(lm)


def test_a_model_without_weights_is_refused():
    with torch.device('meta'):
        lm = tf.AutoModelForCausalLM.from_config(tiny.TEXT_CONFIGS['llama']())
    with pytest.raises(ValueError, match='layer 0 has a shape but no numbers.*from_pretrained'):
        HeadModel(lm)


class Packed(nn.Module):
    "Like the layers of GPTQ and AWQ: the weight is packed, and has another name"
    def __init__(self):
        super().__init__()
        self.register_buffer('qweight', torch.zeros(4, 32, dtype=torch.int32))


def bitsandbytes_layer(name, dtype):
    "A layer under the name of one of bitsandbytes', whose weight is in codes of a type"
    kind = type(name, (nn.Linear,), dict(__module__='bitsandbytes.nn.modules'))
    layer = kind(32, 32, bias=False)
    layer.weight = nn.Parameter(torch.zeros(32, 32).to(dtype), requires_grad=False)
    return layer


QUANTISED = {
    'GPTQ or AWQ': Packed,
    'Linear8bitLt': lambda: bitsandbytes_layer('Linear8bitLt', torch.int8),
    'Linear4bit': lambda: bitsandbytes_layer('Linear4bit', torch.uint8),
    'Linear4bit in bfloat16': lambda: bitsandbytes_layer('Linear4bit', torch.bfloat16),
}


@pytest.mark.parametrize('kind', QUANTISED)
def test_quantised_layers_are_refused(kind):
    lm = tiny.text_model('llama')
    lm.model.layers[1].self_attn.o_proj = QUANTISED[kind]()
    with pytest.raises(ValueError, match='of layer 1 is quantised.*dtype=torch.bfloat16'):
        HeadModel(lm)
    lm = tiny.text_model('llama')
    lm.lm_head = QUANTISED[kind]()
    with pytest.raises(ValueError, match='the unembedding is quantised'): HeadModel(lm)


def test_a_layer_that_a_family_wrote_itself_is_no_quantised_one():
    "Falcon multiplies with its weight in a class of its own"
    config = tf.FalconConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2,
                             num_attention_heads=4, ffn_hidden_size=48)
    model = HeadModel(tf.AutoModelForCausalLM.from_config(config).eval())
    assert type(model.projections[0]).__name__ == 'FalconLinear'


@pytest.mark.parametrize('config', [tf.CohereConfig(**tiny.TEXT), tf.NemotronConfig(**tiny.TEXT),
                                    tf.OlmoConfig(**tiny.TEXT)])
def test_folding_works_for_every_kind_of_final_norm(config):
    "The folded dictionary gives the logits, up to a factor for each token and a constant"
    torch.manual_seed(0)
    lm = tiny.randomise(tf.AutoModelForCausalLM.from_config(config)).eval()
    model = HeadModel(lm, tiny.TOK)
    seen = {}
    handle = model.final_norm.register_forward_pre_hook(keep_input(seen, 'stream'))
    batch = tiny.TOK(TEXTS[0], return_tensors='pt', return_token_type_ids=False)
    found = logits(lm, batch)
    handle.remove()
    bias = getattr(model.final_norm, 'bias', None)
    if bias is not None: found = found - model.unembedding.weight @ bias
    ours = seen['stream'] @ model.dictionary(fold_norm=True).atoms.T
    likeness = torch.cosine_similarity(found, ours, dim=-1)
    close(likeness, torch.ones(found.shape[:2]), atol=1e-4, rtol=0)


KINDS = {'F32': '', 'F16': '', 'Q8_0': 'Q8_0 GGUF', 'Q4_1': 'Q4_1 GGUF'}


@pytest.mark.parametrize('kind', KINDS)
def test_a_gguf_file_becomes_a_plain_model(kind, tmp_path):
    file = tmp_path / f'Tiny-2M-Instruct.{kind}.gguf'
    original = tiny.write_gguf(file, kind)
    model = HeadModel.from_pretrained(file, dtype=torch.float32)
    assert model.name == 'Tiny-2M-Instruct'
    assert model.quantised_origin == KINDS[kind]
    assert (f'weights from {kind} GGUF' in repr(model)) == bool(KINDS[kind])
    assert all(type(p) is nn.Linear and p.weight.dtype == torch.float32 for p in model.projections)
    assert not hasattr(model.model.config, 'quantization_config')
    batch = model.encode(TEXTS)
    close(logits(model.model, batch), logits(original, batch))


def test_what_came_from_gguf_is_saved_and_loaded_like_any_model(tmp_path):
    file = tmp_path / 'Tiny-2M-Instruct.Q8_0.gguf'
    tiny.write_gguf(file, 'Q8_0')
    model = HeadModel.from_pretrained(tmp_path, gguf_file=file.name)
    model.model.save_pretrained(tmp_path / 'saved')
    model.tokenizer.save_pretrained(tmp_path / 'saved')
    again = HeadModel.from_pretrained(tmp_path / 'saved')
    assert again.weights_hash() == model.weights_hash()
    assert again.quantised_origin == 'Q8_0 GGUF'
    batch = model.encode(TEXTS)
    same(again.encode(TEXTS)['input_ids'], batch['input_ids'])
    same(logits(again.model, batch), logits(model.model, batch))


def test_the_tokenizer_of_a_gguf_file_is_the_one_that_was_put_in(tmp_path):
    tiny.write_gguf(tmp_path / 'tiny.gguf')
    tok = HeadModel.from_pretrained(tmp_path / 'tiny.gguf').tokenizer
    for role in ('bos_token', 'eos_token', 'pad_token', 'unk_token'):
        assert getattr(tok, role) == getattr(tiny.TOK, role)
    assert tok(TEXTS).input_ids == tiny.TOK(TEXTS).input_ids
    hello = [dict(role='user', content='hello')]
    assert tok.apply_chat_template(hello, tokenize=False) == 'user: hello\n'


def test_gguf_files_that_cannot_be_read_say_why(tmp_path):
    file = tmp_path / 'tiny.gguf'
    tiny.write_gguf(file)
    whole = file.read_bytes()
    for length in (10, 1000, len(whole) // 2, len(whole) - 2000):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='tiny.gguf is damaged or not complete'):
            HeadModel.from_pretrained(file)
    file.write_bytes(b'<html>not found</html>')
    with pytest.raises(ValueError, match='tiny.gguf is not a GGUF file'):
        HeadModel.from_pretrained(file)
    with pytest.raises(ValueError, match='there is no file .*other.gguf'):
        HeadModel.from_pretrained(tmp_path / 'other.gguf')
    with pytest.raises(OSError, match='other.gguf'):
        HeadModel.from_pretrained(tmp_path, gguf_file='other.gguf')


def test_a_gguf_file_of_an_unknown_architecture_is_refused(tmp_path):
    tiny.write_gguf(tmp_path / 'tiny.gguf', architecture='rwkv7')
    with pytest.raises(ValueError, match='transformers .* cannot read .*rwkv7'):
        HeadModel.from_pretrained(tmp_path / 'tiny.gguf')


def test_a_gguf_file_without_some_weights_is_refused(tmp_path):
    tiny.write_gguf(tmp_path / 'tiny.gguf', without=['blk.1.attn_output.weight'])
    with pytest.raises(ValueError, match='lacks weights .*layers.1.self_attn.o_proj.weight'):
        HeadModel.from_pretrained(tmp_path / 'tiny.gguf')
